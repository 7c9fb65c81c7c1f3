"""Frames of any size to patches, and positions with three axes, as Qwen2.5-VL wants them.

The numbers are those of transformers' ``Qwen2_5_VLProcessor``, ``get_rope_index`` and Pillow image processor. Its video
processor resizes by torchvision, which rounds differently.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...processing import VideoPart
from ...processing.patches import PatchProcessor, check_aspect, fitted_size

# Of transformers' Qwen2VLVideoProcessor and Qwen2_5_VLVisionConfig, for checkpoints that leave a value out.
_FEWEST_PIXELS = 128 * 28 * 28
_MOST_PIXELS = 768 * 28 * 28
_VIDEO_TOKENS = 128_000
_TOKENS_PER_SECOND = 4

_SHARE_OF_TOKENS = 0.9
"""The video's share of ``max_video_tokens``; the text has the rest."""


class Qwen25VLProcessor(PatchProcessor):
    """Text and frames of a Qwen2.5-VL checkpoint; see `VideoProcessor`."""

    usual_patch_size = 14

    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        super().__init__(folder, config)
        settings = self._settings
        size = settings.get("size") or {}
        self._fewest_pixels: int = settings.get("min_pixels") or size.get("shortest_edge") or _FEWEST_PIXELS
        self._most_pixels: int = settings.get("max_pixels") or size.get("longest_edge") or _MOST_PIXELS
        self._video_tokens: int | None = settings.get("max_video_tokens") or _VIDEO_TOKENS
        if settings.get("cap_pixels_per_frame") is False:
            self._video_tokens = None
        vision = config.get("vision_config") or {}
        self._tokens_per_second: float = vision.get("tokens_per_second", _TOKENS_PER_SECOND)

    def frame_size(self, frames: int, height: int, width: int) -> tuple[int, int]:
        """Return the height and width to resize to, in pixels.

        Both are multiples of a token's side, and their product lies within the checkpoint's bounds. A frame also gets
        no more than an even share of ``max_video_tokens``, as in the model's own ``qwen-vl-utils``, unless the
        checkpoint says ``"cap_pixels_per_frame": false``.

        Raises:
            PromptError: one side is more than 200 times the other.
        """
        check_aspect(height, width)
        side = self.token_side
        most = self._most_pixels
        if self._video_tokens is not None:
            whole_video = int(self._video_tokens * side * side * _SHARE_OF_TOKENS)
            share = whole_video * self.temporal_patch_size // frames
            most = max(min(most, share), int(self._fewest_pixels * 1.05))
        return fitted_size(height, width, side, self._fewest_pixels, most)

    def _video_part(self, frames: NDArray[np.uint8], timestamps_s: Sequence[float]) -> VideoPart:
        time, height, width = self.grid(frames)
        interval = self._tokens_per_second * self.temporal_patch_size / self._frame_rate(len(frames), timestamps_s)
        # In float32, and truncated only after the product, as transformers does it.
        times = (np.arange(time, dtype=np.float32) * np.float32(interval)).astype(np.int64)
        grid = np.meshgrid(times, np.arange(height), np.arange(width), indexing="ij")
        positions = np.stack([axis.ravel() for axis in grid])
        pixels = partial(self.patches, frames)
        return self._single_run(pixels, time, positions.shape[1], positions, max(height, width))

    def _frame_rate(self, frames: int, timestamps_s: Sequence[float]) -> float:
        """Frames a second; the checkpoint's rate if there are no times."""
        self._check_times(frames, timestamps_s)
        span = timestamps_s[-1] - timestamps_s[0] if timestamps_s else 0.0
        if span <= 0:
            return self._rate
        # Three digits: positions are truncated, so a few milliseconds in a frame's time could change them.
        return float(f"{(frames - 1) / span:.3g}")
