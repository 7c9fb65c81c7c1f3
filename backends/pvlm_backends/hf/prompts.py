"""Prompts of a family with a folder: they are ours, and their passes transformers'."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pvlm_protocols.backend import BackendError, ModelInfo, Prompt
from pvlm_protocols.prefixes import KeptPrefix

from ..families import Family
from ..prefix import find_prefix, visuals_after
from ..processing import PreparedPrompt, VideoProcessor
from ..processing.prompt import Pixels
from .branches import MASKED, BranchingFamilySession
from .session import FamilySession


class FamilyPrompts:
    """Opens sessions of a family's model."""

    def __init__(self, family: Family[Any], processor: VideoProcessor) -> None:
        self.processor = processor
        self._family = family

    def open(
        self,
        model: Any,
        info: ModelInfo,
        prompt: Prompt,
        capacity: int,
        find: Callable[[bytes], KeptPrefix | None] | None = None,
    ) -> FamilySession:
        """Build the prompt and run the vision tower over what no kept prefix covers. Raises PromptError, FramesMissing.

        ``find``: as for `find_prefix`.
        """
        prepared = self.processor.prepare_for(info, prompt, capacity)
        prefix = find_prefix(prepared, find)
        visuals = self._visuals(model, visuals_after(prepared, prefix))
        kind = BranchingFamilySession if model.config._attn_implementation in MASKED else FamilySession
        return kind(model, prepared, visuals, capacity, prefix)

    def with_one_video(self, model: Any, info: ModelInfo, prompt: Prompt) -> tuple[PreparedPrompt, dict[str, Tensor]]:
        """Return the prompt, and the model's keyword arguments for its video (empty without one), for `generate`.

        Raises PromptError, and BackendError as `HuggingFaceBackend.generate` does.
        """
        prepared = self.processor.prepare(prompt)
        if int(prepared.positions[:, -1].max()) + 1 != prepared.next_position:
            raise BackendError(
                f"transformers' generate cannot be compared on this video of {info.family!r}: its times reach "
                f"to position {prepared.next_position - 1}, beyond the prompt's last token; take a shorter video"
            )
        if [visual.kind for visual in prepared.visuals] not in ([], ["video"]):
            raise BackendError("transformers' generate is compared on prompts with one video, or without")
        visuals = self._visuals(model, prepared.visuals)
        return prepared, visuals[0] if visuals else {}

    def _visuals(self, model: Any, visuals: Sequence[Pixels]) -> list[dict[str, Tensor]]:
        """The model's keyword arguments for each video and image, on its device."""
        found = []
        for visual in visuals:
            pixels = torch.from_numpy(visual.values).to(model.device, model.dtype)
            if visual.kind == "image":
                found.append(self._family.transformers_image(pixels, visual.size))
            else:
                found.append(self._family.transformers_video(pixels))
        return found
