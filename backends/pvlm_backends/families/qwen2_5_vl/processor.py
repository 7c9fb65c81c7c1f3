"""Frames of any size to patches, and positions with three axes, as Qwen2.5-VL wants them.

The numbers are those of transformers' ``Qwen2_5_VLProcessor``, ``get_rope_index`` and Pillow image processor. Its video
processor resizes by torchvision, which rounds differently.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pvlm_protocols.backend import CheckpointError, FrameDefaults, PromptError

from ...processing import VideoPart, VideoProcessor
from ...processing.pixels import FrameFilter, check_frames, frame_settings

_LARGEST_ASPECT = 200

# Of transformers' Qwen2VLVideoProcessor and Qwen2_5_VLVisionConfig, for checkpoints that leave a value out.
_FEWEST_PIXELS = 128 * 28 * 28
_MOST_PIXELS = 768 * 28 * 28
_VIDEO_TOKENS = 128_000
_FEWEST_FRAMES = 4
_MOST_FRAMES = 768
_TOKENS_PER_SECOND = 4

_SHARE_OF_TOKENS = 0.9
"""The video's share of ``max_video_tokens``; the text has the rest."""
_FRAMES_A_SECOND = 2.0
"""The rate that the family was trained for; also the rate of frames without times."""


class Qwen25VLProcessor(VideoProcessor):
    """Text and frames of a Qwen2.5-VL checkpoint; see `VideoProcessor`."""

    axes = 3

    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        super().__init__(folder, config)
        vision = config.get("vision_config") or {}
        settings = frame_settings(folder)
        self.patch_size: int = settings.get("patch_size", 14)
        self.temporal_patch_size: int = settings.get("temporal_patch_size", 2)
        self.merge_size: int = settings.get("merge_size", 2)
        self._check_patches(vision, settings)
        size = settings.get("size") or {}
        self._fewest_pixels: int = settings.get("min_pixels") or size.get("shortest_edge") or _FEWEST_PIXELS
        self._most_pixels: int = settings.get("max_pixels") or size.get("longest_edge") or _MOST_PIXELS
        self._video_tokens: int | None = settings.get("max_video_tokens") or _VIDEO_TOKENS
        if settings.get("cap_pixels_per_frame") is False:
            self._video_tokens = None
        self._tokens_per_second: float = vision.get("tokens_per_second", _TOKENS_PER_SECOND)
        self._filter = FrameFilter(settings)
        self._rate: float = settings.get("fps") or _FRAMES_A_SECOND
        self._frame_defaults = self._defaults(settings)

    @property
    def frame_defaults(self) -> FrameDefaults:
        """Two frames a second, at least 4 and at most 768, or what the checkpoint says."""
        return self._frame_defaults

    def resize(self, frames: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Resize uint8 ``(T, H, W, 3)``, keeping the aspect as nearly as whole tokens allow. Raises PromptError."""
        check_frames(frames)
        return self._filter.resize(frames, *self.frame_size(*frames.shape[:3]))

    def frame_size(self, frames: int, height: int, width: int) -> tuple[int, int]:
        """Return the height and width to resize to, in pixels.

        Both are multiples of a token's side, and their product lies within the checkpoint's bounds. A frame also gets
        no more than an even share of ``max_video_tokens``, as in the model's own ``qwen-vl-utils``, unless the
        checkpoint says ``"cap_pixels_per_frame": false``.

        Raises:
            PromptError: one side is more than 200 times the other.
        """
        if max(height, width) > _LARGEST_ASPECT * min(height, width):
            raise PromptError(
                f"frames of {width}x{height} are more than {_LARGEST_ASPECT} times as long as wide, "
                "which this model does not take; crop them"
            )
        side = self.patch_size * self.merge_size
        most = self._most_pixels
        if self._video_tokens is not None:
            whole_video = int(self._video_tokens * side * side * _SHARE_OF_TOKENS)
            share = whole_video * self.temporal_patch_size // frames
            most = max(min(most, share), int(self._fewest_pixels * 1.05))
        rounded = round(height / side) * side, round(width / side) * side
        if rounded[0] * rounded[1] > most:
            shrink = math.sqrt(height * width / most)
            return (
                max(side, math.floor(height / shrink / side) * side),
                max(side, math.floor(width / shrink / side) * side),
            )
        if rounded[0] * rounded[1] < self._fewest_pixels:
            grow = math.sqrt(self._fewest_pixels / (height * width))
            return math.ceil(height * grow / side) * side, math.ceil(width * grow / side) * side
        return rounded

    def video_grid(self, frames: NDArray[np.uint8]) -> tuple[int, int, int]:
        """For the usual patches ``(T / 2, H / 28, W / 28)``, the first rounded up."""
        side = self.patch_size * self.merge_size
        return math.ceil(len(frames) / self.temporal_patch_size), frames.shape[1] // side, frames.shape[2] // side

    def patches(self, frames: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Cut resized frames, uint8 ``(T, H, W, 3)``, into patches, grouped by the token that they become.

        Returns:
            float32 ``(t, h, w, patches of a token, numbers of a patch)``. ``t`` is T halved and rounded up; an odd last
            frame is repeated. ``h`` and ``w`` count tokens. Flattened except for the last dimension, this is
            transformers' ``pixel_values_videos``.

        Raises:
            PromptError: the frames are not as `resize` returns them.
        """
        side, depth, merge = self.patch_size * self.merge_size, self.temporal_patch_size, self.merge_size
        check_frames(frames)
        if frames.shape[1] % side or frames.shape[2] % side:
            raise PromptError(
                f"frames must have sides that are multiples of {side}, as `resize` returns them, not {frames.shape}"
            )
        if missing := -len(frames) % depth:
            frames = np.concatenate([frames, np.repeat(frames[-1:], missing, axis=0)])
        pixels = self._filter.normalize(frames)
        time, height, width = self.video_grid(frames)
        patch = self.patch_size
        by_patch = pixels.reshape(time, depth, 3, height, merge, patch, width, merge, patch)
        grouped = by_patch.transpose(0, 3, 6, 4, 7, 2, 1, 5, 8)
        return grouped.reshape(time, height, width, merge * merge, 3 * depth * patch * patch)

    def _video_part(self, frames: NDArray[np.uint8], timestamps_s: Sequence[float]) -> VideoPart:
        pixels = self.patches(frames)
        time, height, width = pixels.shape[:3]
        interval = self._tokens_per_second * self.temporal_patch_size / self._frame_rate(len(frames), timestamps_s)
        # In float32, and truncated only after the product, as transformers does it.
        times = (np.arange(time, dtype=np.float32) * np.float32(interval)).astype(np.int64)
        grid = np.meshgrid(times, np.arange(height), np.arange(width), indexing="ij")
        positions = np.stack([axis.ravel() for axis in grid])
        return self._single_run(pixels, positions.shape[1], positions, max(height, width))

    def _frame_rate(self, frames: int, timestamps_s: Sequence[float]) -> float:
        """Frames a second; the checkpoint's rate if there are no times."""
        if timestamps_s and len(timestamps_s) != frames:
            raise PromptError(f"there are {frames} frames, but {len(timestamps_s)} timestamps")
        span = timestamps_s[-1] - timestamps_s[0] if timestamps_s else 0.0
        if span <= 0:
            return self._rate
        # Three digits: positions are truncated, so a few milliseconds in a frame's time could change them.
        return float(f"{(frames - 1) / span:.3g}")

    def _defaults(self, settings: dict[str, Any]) -> FrameDefaults:
        if settings.get("num_frames"):
            return FrameDefaults(num_frames=settings["num_frames"])
        return FrameDefaults(
            num_frames=settings.get("max_frames") or _MOST_FRAMES,
            fps=self._rate,
            min_frames=settings.get("min_frames") or _FEWEST_FRAMES,
            multiple=self.temporal_patch_size,
        )

    def _check_patches(self, vision: Mapping[str, Any], settings: dict[str, Any]) -> None:
        for name, key, ours in (
            ("patch_size", "patch_size", self.patch_size),
            ("temporal_patch_size", "temporal_patch_size", self.temporal_patch_size),
            ("merge_size", "spatial_merge_size", self.merge_size),
        ):
            if vision.get(key, ours) != ours:
                raise CheckpointError(
                    f"{self._folder}: frames are cut with {name}={ours}, but vision_config.{key} is {vision[key]!r}"
                )
        if settings.get("do_resize", True) is False:
            raise CheckpointError(f"{self._folder}: do_resize=False is not supported: frames must fit whole tokens")
