"""What transformers itself makes of a Qwen3-VL prompt: its pixels, its positions, its plain forward pass."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoTokenizer, Qwen3VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.qwen3_vl.processing_qwen3_vl import Qwen3VLProcessor

from tests.backends.families.qwen2_5_vl.reference import QwenReference

from .checkpoint import TEMPLATE


class Qwen3Reference(QwenReference):
    """A checkpoint in transformers, float32.

    Frames come in the size that they have in the prompt; ``second_per_grid`` is the time of a pair of them.
    """

    def __init__(self, folder: Path) -> None:
        self.model: Any = Qwen3VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.image_processor = Qwen2VLImageProcessorPil.from_pretrained(folder, do_resize=False)
        # Its constructor needs torchvision, for the video processor.
        self.processor: Any = Qwen3VLProcessor.__new__(Qwen3VLProcessor)
        for name in ("image", "video"):
            setattr(self.processor, f"{name}_token", f"<|{name}_pad|>")
        self.processor.vision_start_token, self.processor.vision_end_token = "<|vision_start|>", "<|vision_end|>"
        self.processor.video_processor = SimpleNamespace(merge_size=2, temporal_patch_size=2)

    def expanded(self, text: str, grid: torch.Tensor, frames: int, fps: float) -> str:
        """The text with what transformers' processor writes in place of the video token."""
        metadata = SimpleNamespace(fps=fps, frames_indices=list(range(frames)))
        video = self.processor.replace_video_token({"video_grid_thw": grid, "video_metadata": [metadata]}, 0)
        found: str = self.processor.get_text_with_replacements([text], videos_replacements=[video])[0][0]
        return found

    def inputs(
        self, question: str, frames: NDArray[np.uint8] | None, second_per_grid: float = 1.0
    ) -> dict[str, torch.Tensor]:
        """What transformers' processor would give to the model."""
        content = [{"type": "video"}] * (frames is not None) + [{"type": "text", "text": question}]
        text = self.tokenizer.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False, chat_template=TEMPLATE
        )
        found = {}
        if frames is not None:
            pixels, grid = self.pixels(frames)
            text = self.expanded(text, grid, len(frames), 2 / second_per_grid)
            found = {"pixel_values_videos": pixels, "video_grid_thw": grid}
        ids = self.tokenizer(text, return_tensors="pt")["input_ids"]
        kinds = 2 * (ids == self.model.config.video_token_id).int()
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "mm_token_type_ids": kinds, **found}

    @torch.no_grad()
    def deep_features(self, inputs: dict[str, torch.Tensor]) -> list[torch.Tensor]:
        """``(video tokens, hidden_size)`` for each of the first layers."""
        if "pixel_values_videos" not in inputs:
            return []
        found = self.model.get_video_features(inputs["pixel_values_videos"], inputs["video_grid_thw"])
        return [layer[0] for layer in found.deepstack_features]

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
        visual = torch.zeros(1, count, dtype=torch.bool)
        visual[0, : int(kept.sum())] = video[kept]
        output = self.model.model.language_model(
            inputs_embeds=torch.cat([embeddings[kept], tokens])[None],
            position_ids=placed[:, None],
            attention_mask=torch.full((1, 1, count, count), -math.inf).triu_(1),
            visual_pos_masks=visual,
            deepstack_visual_embeds=[layer[kept[video]] for layer in self.deep_features(inputs)],
            use_cache=False,
        )
        found: torch.Tensor = self.model.lm_head(output.last_hidden_state[0, int(kept.sum()) - 1 :])
        return found

    def hidden_states(self, question: str, frames: NDArray[np.uint8]) -> tuple[torch.Tensor, ...]:
        """``(P, hidden_size)`` for the input and each layer, its own features added (the last one normalised)."""
        inputs = self.inputs(question, frames)
        states = list(super().hidden_states(question, frames))
        video = inputs["input_ids"][0] == self.model.config.video_token_id
        for layer, features in enumerate(self.deep_features(inputs), 1):
            states[layer] = states[layer].clone()
            states[layer][video] += features
        return tuple(states)
