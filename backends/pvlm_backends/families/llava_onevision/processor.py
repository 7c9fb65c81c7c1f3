"""Frames to pixels, and a question with frames to a prompt, as LLaVA-OneVision wants them.

The numbers are those of transformers' ``LlavaOnevisionProcessor`` and its Pillow image processor.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pvlm_protocols.backend import CheckpointError, FrameDefaults, PromptError

from ...processing import VideoPart, VideoProcessor
from ...processing.pixels import FrameFilter, check_frames, frame_settings, image_settings
from .images import ImageGrid, squared

_UNIFORM_FRAMES = 32
_CONSECUTIVE_FRAMES = 128


class LlavaOnevisionProcessor(VideoProcessor):
    """Text and frames of a LLaVA-OneVision checkpoint; see `VideoProcessor`."""

    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        super().__init__(folder, config)
        vision = config.get("vision_config") or {}
        self._image_size: int = vision.get("image_size", 384)
        # The tower's grid of patches, halved by the pooling, rounded up.
        self._side = math.ceil(self._image_size // vision.get("patch_size", 14) / 2)
        self.tokens_per_frame = self._side * self._side
        settings = frame_settings(folder)
        self._check_size(settings)
        self._filter = FrameFilter(settings)
        self._frame_defaults = _frame_defaults(settings)
        self._image_filter = FrameFilter(image_settings(folder))
        self._grid = ImageGrid(config, self._image_size, self._image_size // vision.get("patch_size", 14))

    @property
    def frame_defaults(self) -> FrameDefaults:
        """32 uniform frames; consecutive ones if the checkpoint says ``"do_sample_frames": false``."""
        return self._frame_defaults

    def resize(self, frames: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Resize uint8 ``(T, H, W, 3)`` to the tower's size by the checkpoint's filter. Raises PromptError."""
        check_frames(frames)
        return self._filter.resize(frames, self._image_size, self._image_size)

    def video_grid(self, frames: NDArray[np.uint8]) -> tuple[int, int, int]:
        """``(T, side, side)``: every frame has the pooled grid of the tower."""
        return len(frames), self._side, self._side

    def normalize(self, frames: NDArray[np.uint8], pixel_filter: FrameFilter | None = None) -> NDArray[np.float32]:
        """Turn resized frames, uint8 ``(T, H, W, 3)``, into float32 ``(T, 3, H, W)``. Raises PromptError."""
        self._check_resized(frames)
        return (pixel_filter or self._filter).normalize(frames)

    def _check_resized(self, frames: NDArray[np.uint8]) -> None:
        side = self._image_size
        if frames.dtype != np.uint8 or frames.ndim != 4 or len(frames) == 0 or frames.shape[1:] != (side, side, 3):
            raise PromptError(
                f"frames must be uint8 (T, {side}, {side}, 3), T >= 1, as `resize` returns them, "
                f"not {frames.dtype} {frames.shape}"
            )

    def _video_part(self, frames: NDArray[np.uint8], timestamps_s: Sequence[float]) -> VideoPart:
        self._check_resized(frames)
        count = len(frames) * self.tokens_per_frame
        places = np.arange(count + 1)[None]  # one more for the newline after the video
        return self._single_run(partial(self.normalize, frames), len(frames), count, places, count + 1)

    def resize_image(self, image: NDArray[np.uint8], images: int) -> NDArray[np.uint8]:
        """Cut a single image into pieces, see `ImageGrid`; pad one of several to a square. Raises PromptError."""
        check_frames(image)
        if images == 1:
            return self._grid.resize(image, self._image_filter)
        return self._image_filter.resize(squared(image, self._image_filter.mean), self._image_size, self._image_size)

    def _image_part(self, frames: NDArray[np.uint8], size: tuple[int, int]) -> VideoPart:
        """The whole image's tokens, then those of the pieces in rows; a newline ends each row, or the whole alone."""
        self._check_resized(frames)
        pixels = partial(self.normalize, frames, self._image_filter)
        whole = np.ones(self._grid.patches**2, np.bool_)
        if len(frames) > 1:
            rows, columns = self._grid.layout(size).tokens
            prunable = np.ones((rows, columns + 1), np.bool_)
            prunable[:, -1] = False
        else:
            prunable = np.zeros((1, 1), np.bool_)
        video = np.flatnonzero(np.concatenate([whole, prunable.ravel()]))
        count = len(whole) + prunable.size
        every = np.arange(count)
        ids = np.full(count, self._placeholders["image"][0])
        return VideoPart(pixels, 1, ids, every, video, every[None], count)

    def _check_size(self, settings: dict[str, Any]) -> None:
        size = settings.get("size", {"height": 384, "width": 384})
        sides = {size.get("height"), size.get("width")} if isinstance(size, dict) else {size}
        if settings.get("do_resize", True) is False or settings.get("do_center_crop") or sides != {self._image_size}:
            raise CheckpointError(
                f"{self._folder}: frames must be resized to the tower's {self._image_size} x {self._image_size} px, "
                f"but its settings say size={size!r}, do_resize={settings.get('do_resize', True)!r}, "
                f"do_center_crop={settings.get('do_center_crop', False)!r}"
            )


def _frame_defaults(settings: dict[str, Any]) -> FrameDefaults:
    if settings.get("do_sample_frames") is False:
        return FrameDefaults(num_frames=settings.get("num_frames") or _CONSECUTIVE_FRAMES, consecutive=True)
    return FrameDefaults(num_frames=_UNIFORM_FRAMES)
