"""What transformers itself makes of a prompt: the model's plain forward pass, without a cache or any code of ours."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import (
    AutoTokenizer,
    GenerationConfig,
    LlavaOnevisionForConditionalGeneration,
)
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import LlavaOnevisionImageProcessorPil


class LlavaReference:
    """A checkpoint in transformers, float32."""

    def __init__(self, folder: Path) -> None:
        self.model = LlavaOnevisionForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.image_processor = LlavaOnevisionImageProcessorPil.from_pretrained(folder)
        vision = self.model.config.vision_config
        self.tokens_per_frame = math.ceil(vision.image_size // vision.patch_size / 2) ** 2

    def pixels(self, frames: NDArray[np.uint8]) -> torch.Tensor:
        """float32 ``(1, T, 3, H, W)``: each frame as a picture of its own, whose first patch is the whole picture."""
        pixels = [
            self.image_processor(frame, input_data_format="channels_last")["pixel_values"][0][0] for frame in frames
        ]
        return torch.from_numpy(np.stack(pixels))[None]

    def ids(self, question: str, frames: int) -> list[int]:
        """The prompt's ids, as transformers' processor expands them."""
        content = [{"type": "video"}] * bool(frames) + [{"type": "text", "text": question}]
        text = self.tokenizer.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
        )
        text = text.replace("<video>", "<video>" * (frames * self.tokens_per_frame + 1))
        return list(self.tokenizer(text)["input_ids"])

    @torch.no_grad()
    def embeddings(self, question: str, frames: NDArray[np.uint8] | None) -> torch.Tensor:
        """``(P, hidden_size)``: the decoder's input."""
        ids = torch.tensor(self.ids(question, 0 if frames is None else len(frames)))
        embeddings = self.model.get_input_embeddings()(ids)
        if frames is not None:
            video = self.model.get_video_features(self.pixels(frames)).pooler_output[0]
            embeddings[ids == self.model.config.video_token_id] = video
        return embeddings

    @torch.no_grad()
    def logits(
        self,
        question: str,
        frames: NDArray[np.uint8] | None,
        answer: Sequence[int],
        keep: torch.Tensor | None = None,
        compact_positions: bool = False,
    ) -> torch.Tensor:
        """``(1 + len(answer), vocab_size)``: what follows the prompt, and each token of the answer."""
        embeddings = self.embeddings(question, frames)
        rows = torch.arange(len(embeddings))
        if keep is not None:
            ids = torch.tensor(self.ids(question, len(frames) if frames is not None else 0))
            video = (ids == self.model.config.video_token_id).nonzero()[:-1, 0]  # the last is the newline
            rows = rows[~torch.isin(rows, video[~keep])]
        after = torch.arange(len(embeddings), len(embeddings) + len(answer))
        positions = torch.cat([rows, after])
        tokens = self.model.get_input_embeddings()(torch.tensor([*answer], dtype=torch.int64))
        inputs = torch.cat([embeddings[rows], tokens])[None]
        if compact_positions:
            positions = torch.arange(inputs.shape[1])
        # The mask is written out: left to itself, transformers takes gaps in the positions for packed sequences.
        mask = torch.full((1, 1, inputs.shape[1], inputs.shape[1]), -math.inf).triu_(1)
        output = self.model(inputs_embeds=inputs, position_ids=positions[None], attention_mask=mask, use_cache=False)
        return output.logits[0, len(rows) - 1 :]

    @torch.no_grad()
    def hidden_states(self, question: str, frames: NDArray[np.uint8]) -> tuple[torch.Tensor, ...]:
        """``(P, hidden_size)`` for the input and each layer (the last one normalised)."""
        inputs = self.embeddings(question, frames)[None]
        output = self.model(inputs_embeds=inputs, output_hidden_states=True, use_cache=False)
        return tuple(states[0] for states in output.hidden_states)

    @torch.no_grad()
    def attention(self, question: str, frames: NDArray[np.uint8]) -> tuple[torch.Tensor, ...]:
        """``(heads, P, P)`` for each layer, by transformers' eager attention."""
        inputs = self.embeddings(question, frames)[None]
        before = self.model.config._attn_implementation
        self.model.set_attn_implementation("eager")
        try:
            output = self.model(inputs_embeds=inputs, output_attentions=True, use_cache=False)
        finally:
            self.model.set_attn_implementation(before)
        return tuple(probabilities[0] for probabilities in output.attentions)

    @torch.no_grad()
    def generate(
        self, question: str, frames: NDArray[np.uint8] | None, max_tokens: int, end: Sequence[int]
    ) -> tuple[int, ...]:
        """The greedy answer by `generate`, everything neutral."""
        ids = torch.tensor([self.ids(question, 0 if frames is None else len(frames))])
        output = self.model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            **({} if frames is None else {"pixel_values_videos": self.pixels(frames)}),
            generation_config=GenerationConfig(
                do_sample=False, max_new_tokens=max_tokens, eos_token_id=list(end), pad_token_id=0
            ),
        )
        return tuple(output[0, ids.shape[1] :].tolist())
