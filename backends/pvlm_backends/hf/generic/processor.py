"""The half for the engine's process: text, and frames as they are. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pvlm_protocols.backend import FrameDefaults

from ...processing.pixels import check_frames, frame_settings
from ...processing.text import TextProcessor

_UNIFORM_FRAMES = 32
_MOST_FRAMES = 768


class GenericProcessor(TextProcessor):
    """Text of a checkpoint of any family. Its frames travel as they are: the worker's `GenericPrompts` resizes them."""

    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        super().__init__(folder, config)
        self._frame_defaults = _frame_defaults(frame_settings(folder))

    @property
    def frame_defaults(self) -> FrameDefaults:
        """What the checkpoint's settings say (``fps``, ``num_frames``, ...), or 32 uniform frames."""
        return self._frame_defaults

    def resize(self, frames: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return uint8 ``(T, H, W, 3)`` as it is. Raises PromptError for another shape or dtype."""
        check_frames(frames)
        return frames

    def resize_image(self, image: NDArray[np.uint8], images: int) -> NDArray[np.uint8]:
        """The same for an image."""
        return self.resize(image)

    def video_grid(self, frames: NDArray[np.uint8]) -> tuple[int, int, int]:
        """``(T, 1, 1)``: where the tokens of a frame lie is not known."""
        return len(frames), 1, 1


def _frame_defaults(settings: Mapping[str, Any]) -> FrameDefaults:
    sampling = settings.get("video_sampling") or {}  # of SmolVLM
    most = sampling.get("max_frames") or settings.get("num_frames") or settings.get("max_frames")
    fps = sampling.get("fps") or settings.get("fps")
    if not fps:
        return FrameDefaults(num_frames=most or _UNIFORM_FRAMES)
    return FrameDefaults(
        num_frames=most or _MOST_FRAMES,
        fps=fps,
        min_frames=settings.get("min_frames") or 1,
        multiple=settings.get("temporal_patch_size") or 1,
    )
