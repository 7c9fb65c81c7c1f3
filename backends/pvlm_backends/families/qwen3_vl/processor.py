"""Frames of any size to patches, and a prompt with a time in text before each pair of frames, as Qwen3-VL wants them.

The numbers are those of transformers' ``Qwen3VLProcessor``, ``get_rope_index`` and Pillow image processor. Its video
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
from ...processing.processor import token_id

# Of transformers' Qwen3VLVideoProcessor, for checkpoints that leave a value out.
_DEFAULTS = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "fps": 2}
_FEWEST_PIXELS = 128 * 32 * 32
_MOST_PIXELS = 768 * 32 * 32
_FRAME_TOKENS = 768


class Qwen3VLProcessor(PatchProcessor):
    """Text and frames of a Qwen3-VL checkpoint; see `VideoProcessor`."""

    usual_patch_size = 16

    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        super().__init__(folder, config, _DEFAULTS)
        size = self._settings.get("size") or {}
        self._fewest_pixels: int = size.get("shortest_edge") or _FEWEST_PIXELS
        self._most_pixels: int = size.get("longest_edge") or _MOST_PIXELS
        self._frame_tokens: int | None = None
        if self._settings.get("cap_pixels_per_frame"):
            self._frame_tokens = self._settings.get("max_video_tokens") or _FRAME_TOKENS
        self._start_id = token_id(config, "vision_start_token_id")
        self._end_id = token_id(config, "vision_end_token_id")

    def frame_size(self, frames: int, height: int, width: int) -> tuple[int, int]:
        """Return the height and width to resize to, in pixels.

        Both are multiples of a token's side, and all frames together have a number of pixels within the checkpoint's
        bounds. If it says ``"cap_pixels_per_frame": true``, each frame has at most ``max_video_tokens`` tokens.

        Raises:
            PromptError: one side is more than 200 times the other.
        """
        side, depth = self.token_side, self.temporal_patch_size
        frames = max(frames, depth)  # a single picture is repeated
        given = height, width
        if min(height, width) < side:
            scale = side / min(height, width)
            height, width = int(height * scale), int(width * scale)
        check_aspect(height, width, given)
        most = self._most_pixels
        if self._frame_tokens is not None:
            share = min(self._frame_tokens * side * side, most // frames)
            most = max(share, int(self._fewest_pixels * 1.05)) * frames
        return fitted_size(height, width, side, self._fewest_pixels, most, frames, depth)

    def _video_part(self, frames: NDArray[np.uint8], timestamps_s: Sequence[float]) -> VideoPart:
        time, height, width = self.grid(frames)
        count = height * width
        grid = np.stack([np.zeros(count, np.int64), *np.indices((height, width)).reshape(2, -1)])
        ids: list[int] = []
        positions: list[NDArray[np.int64]] = []
        video: list[NDArray[np.int64]] = []
        place = 0
        for time_s in self._times(len(frames), timestamps_s):
            before = [*self.encode(f"<{time_s:.1f} seconds>"), self._start_id]
            video.append(len(ids) + len(before) + np.arange(count))
            ids += [*before, *[self.video_token_id] * count, self._end_id]
            positions += [self._text_positions(place, len(before)), place + len(before) + grid]
            place += len(before) + max(height, width)
            positions.append(self._text_positions(place, 1))
            place += 1
        rows = np.concatenate(video)
        pixels = partial(self.patches, frames)
        return VideoPart(pixels, time, np.array(ids, np.int64), rows, rows, np.concatenate(positions, axis=1), place)

    def _times(self, frames: int, timestamps_s: Sequence[float]) -> list[float]:
        """Return the mean time of each pair of frames, in seconds; of an odd number, the last frame is a pair."""
        self._check_times(frames, timestamps_s)
        depth = self.temporal_patch_size
        times = list(timestamps_s) or [index / self._rate for index in range(frames)]
        times += times[-1:] * (-frames % depth)
        # Five digits: it is written with one, which the rounding of a float32 must not change.
        return [round((times[i] + times[i + depth - 1]) / 2, 5) for i in range(0, len(times), depth)]
