"""What transformers itself makes of a Qwen3-VL prompt: its pixels, its positions, its plain forward pass."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import Qwen3VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.qwen3_vl.processing_qwen3_vl import Qwen3VLProcessor

from tests.backends.families.qwen2_5_vl.reference import QwenReference

from .checkpoint import TEMPLATE


class Qwen3Reference(QwenReference):
    """As `QwenReference`, with times in the text and features for the first layers."""

    kind = Qwen3VLForConditionalGeneration
    template = TEMPLATE

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
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

    def times(self, second_per_grid: float) -> dict[str, torch.Tensor]:
        return {}

    @torch.no_grad()
    def deep_features(self, inputs: dict[str, torch.Tensor]) -> list[torch.Tensor]:
        """``(video tokens, hidden_size)`` for each of the first layers."""
        if "pixel_values_videos" not in inputs:
            return []
        found = self.model.get_video_features(inputs["pixel_values_videos"], inputs["video_grid_thw"])
        return [layer[0] for layer in found.deepstack_features]

    def decoded(self, inputs: dict[str, torch.Tensor], kept: torch.Tensor, **arguments: Any) -> torch.Tensor:
        video = inputs["input_ids"][0] == self.model.config.video_token_id
        visual = torch.zeros(arguments["inputs_embeds"].shape[:2], dtype=torch.bool)
        visual[0, : int(kept.sum())] = video[kept]
        output = self.model.model.language_model(
            visual_pos_masks=visual,
            deepstack_visual_embeds=[layer[kept[video]] for layer in self.deep_features(inputs)],
            **arguments,
        )
        found: torch.Tensor = self.model.lm_head(output.last_hidden_state[0])
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
