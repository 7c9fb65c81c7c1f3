"""What transformers itself makes of a Qwen2.5-VL prompt: its pixels, its positions, its plain forward pass."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoTokenizer, GenerationConfig, Qwen2_5_VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from .checkpoint import TEMPLATE


class QwenReference:
    """A checkpoint in transformers, float32.

    Frames come in the size that they have in the prompt; ``second_per_grid`` is the time of a pair of them.
    """

    kind: Any = Qwen2_5_VLForConditionalGeneration
    template = TEMPLATE

    def __init__(self, folder: Path) -> None:
        self.model: Any = self.kind.from_pretrained(folder, dtype=torch.float32).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.image_processor = Qwen2VLImageProcessorPil.from_pretrained(folder)

    def pixels(self, frames: NDArray[np.uint8]) -> tuple[torch.Tensor, torch.Tensor]:
        """``pixel_values_videos`` and ``video_grid_thw``: frames as pictures, two of them woven into each patch.

        A picture's patches hold it twice, where a video's hold two frames.
        """
        if len(frames) % 2:
            frames = np.concatenate([frames, frames[-1:]])
        made = [self.image_processor(frame, input_data_format="channels_last") for frame in frames]
        patches = torch.stack([torch.from_numpy(picture["pixel_values"]) for picture in made])
        woven = patches.unflatten(-1, (3, 2, -1))[:, :, :, 0].unflatten(0, (-1, 2)).movedim(1, 3)
        _, height, width = made[0]["image_grid_thw"][0]
        return woven.flatten(0, 1).flatten(1), torch.tensor([[len(frames) // 2, height, width]])

    def inputs(
        self, question: str, frames: NDArray[np.uint8] | None, second_per_grid: float = 1.0
    ) -> dict[str, torch.Tensor]:
        """What transformers' processor would give to the model."""
        content = [{"type": "video"}] * (frames is not None) + [{"type": "text", "text": question}]
        text = self.tokenizer.apply_chat_template(
            [{"role": "user", "content": content}],
            add_generation_prompt=True,
            tokenize=False,
            chat_template=self.template,
        )
        found = {}
        if frames is not None:
            pixels, grid = self.pixels(frames)
            text = self.expanded(text, grid, len(frames), 2 / second_per_grid)
            found = {"pixel_values_videos": pixels, "video_grid_thw": grid, **self.times(second_per_grid)}
        ids = self.tokenizer(text, return_tensors="pt")["input_ids"]
        kinds = 2 * (ids == self.model.config.video_token_id).int()
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "mm_token_type_ids": kinds, **found}

    def expanded(self, text: str, grid: torch.Tensor, frames: int, fps: float) -> str:
        """The text with what transformers' processor writes in place of the video token."""
        return text.replace("<|video_pad|>", "<|video_pad|>" * (int(grid.prod()) // 4))

    def times(self, second_per_grid: float) -> dict[str, torch.Tensor]:
        """What the model is given of the video's times, where the text does not have them."""
        return {"second_per_grid_ts": torch.tensor([second_per_grid])}

    @torch.no_grad()
    def positions(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """``(3, P)``, by `get_rope_index`."""
        names = ("input_ids", "mm_token_type_ids", "video_grid_thw", "second_per_grid_ts", "attention_mask")
        found = self.model.model.get_rope_index(**{name: inputs[name] for name in names if name in inputs})
        return found[0][:, 0]

    @torch.no_grad()
    def embeddings(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """``(P, hidden_size)``: the decoder's input."""
        ids = inputs["input_ids"][0]
        embeddings = self.model.get_input_embeddings()(ids)
        if "pixel_values_videos" in inputs:
            video = self.model.get_video_features(inputs["pixel_values_videos"], inputs["video_grid_thw"])
            embeddings[ids == self.model.config.video_token_id] = video.pooler_output[0]
        return embeddings

    @torch.no_grad()
    def logits(
        self,
        question: str,
        frames: NDArray[np.uint8] | None,
        answer: Sequence[int],
        *,
        second_per_grid: float = 1.0,
        keep: torch.Tensor | None = None,
        compact_positions: bool = False,
    ) -> torch.Tensor:
        """``(1 + len(answer), vocab_size)``: what follows the prompt, and each token of the answer."""
        inputs = self.inputs(question, frames, second_per_grid)
        embeddings, positions = self.embeddings(inputs), self.positions(inputs)
        video = inputs["input_ids"][0] == self.model.config.video_token_id
        kept = torch.ones_like(video)
        if keep is not None:
            kept[video] = keep
        after = positions.max() + 1 + torch.arange(len(answer))
        tokens = self.model.get_input_embeddings()(torch.tensor([*answer], dtype=torch.int64))
        placed = torch.cat([positions[:, kept], after.expand(3, -1)], dim=1)
        if compact_positions:
            left = set(positions[:, kept].unique().tolist())
            gaps = torch.tensor([place for place in positions.unique().tolist() if place not in left])
            placed = placed - (gaps < placed[..., None]).sum(-1)
        count = placed.shape[1]
        return self.decoded(
            inputs,
            kept,
            inputs_embeds=torch.cat([embeddings[kept], tokens])[None],
            position_ids=placed[:, None],
            attention_mask=torch.full((1, 1, count, count), -math.inf).triu_(1),
            use_cache=False,
        )[int(kept.sum()) - 1 :]

    def decoded(self, inputs: dict[str, torch.Tensor], kept: torch.Tensor, **arguments: Any) -> torch.Tensor:
        """``(n, vocab_size)``: the logits of the prompt's ``kept`` tokens and the answer's, given to the decoder."""
        return self.model(**arguments).logits[0]

    @torch.no_grad()
    def hidden_states(self, question: str, frames: NDArray[np.uint8]) -> tuple[torch.Tensor, ...]:
        """``(P, hidden_size)`` for the input and each layer (the last one normalised)."""
        output = self.model(**self.inputs(question, frames), output_hidden_states=True, use_cache=False)
        return tuple(states[0] for states in output.hidden_states)

    @torch.no_grad()
    def attention(self, question: str, frames: NDArray[np.uint8]) -> tuple[torch.Tensor, ...]:
        """``(heads, P, P)`` for each layer, by transformers' eager attention."""
        own = self.model.config._attn_implementation
        self.model.set_attn_implementation("eager")
        try:
            output = self.model(**self.inputs(question, frames), output_attentions=True, use_cache=False)
        finally:
            self.model.set_attn_implementation(own)
        return tuple(probabilities[0] for probabilities in output.attentions)

    @torch.no_grad()
    def generate(
        self,
        question: str,
        frames: NDArray[np.uint8] | None,
        max_tokens: int,
        end: Sequence[int],
        second_per_grid: float = 1.0,
    ) -> tuple[int, ...]:
        """The greedy answer by `generate`, everything neutral."""
        inputs = self.inputs(question, frames, second_per_grid)
        self.model.generation_config = GenerationConfig(
            do_sample=False, max_new_tokens=max_tokens, eos_token_id=list(end), pad_token_id=0
        )
        output = self.model.generate(**inputs)
        return tuple(output[0, inputs["input_ids"].shape[1] :].tolist())
