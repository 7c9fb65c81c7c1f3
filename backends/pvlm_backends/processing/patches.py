"""Frames of any size, cut into patches of two frames each: the half of a processor that the Qwen families share."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from pvlm_protocols.backend import CheckpointError, FrameDefaults, PromptError

from .pixels import FrameFilter, check_frames, frame_settings, image_settings
from .processor import VideoPart, VideoProcessor

# Of transformers' video processors, for checkpoints that leave a value out.
_FEWEST_FRAMES = 4
_MOST_FRAMES = 768

# Of transformers' Qwen2VLImageProcessor, for checkpoints that leave a value out.
_FEWEST_IMAGE_PIXELS = 56 * 56
_MOST_IMAGE_PIXELS = 1280 * 28 * 28

_LARGEST_ASPECT = 200
_FRAMES_A_SECOND = 2.0
"""The rate that the families were trained for; also the rate of frames without times."""


class PatchProcessor(VideoProcessor):
    """Text and frames of a checkpoint whose tokens are squares of patches; see `VideoProcessor`.

    A family defines `frame_size` and the video's tokens in a prompt.

    Args:
        folder: the checkpoint's folder.
        config: its config.json.
        defaults: of the family, for frame settings that the checkpoint leaves out.
    """

    axes = 3
    usual_patch_size: ClassVar[int]

    def __init__(self, folder: Path, config: Mapping[str, Any], defaults: Mapping[str, Any] | None = None) -> None:
        super().__init__(folder, config)
        settings = self._settings = {**(defaults or {}), **frame_settings(folder)}
        self.patch_size: int = settings.get("patch_size", self.usual_patch_size)
        self.temporal_patch_size: int = settings.get("temporal_patch_size", 2)
        self.merge_size: int = settings.get("merge_size", 2)
        self._check_patches(config.get("vision_config") or {})
        self._filter = FrameFilter(settings)
        self._rate: float = settings.get("fps") or _FRAMES_A_SECOND
        images = {**(defaults or {}), **image_settings(folder)}
        size = images.get("size") or {}
        self._image_filter = FrameFilter(images)
        self._image_pixels: tuple[int, int] = (
            images.get("min_pixels") or size.get("shortest_edge") or _FEWEST_IMAGE_PIXELS,
            images.get("max_pixels") or size.get("longest_edge") or _MOST_IMAGE_PIXELS,
        )

    @property
    def frame_defaults(self) -> FrameDefaults:
        """Two frames a second, at least 4 and at most 768, or what the checkpoint says."""
        settings = self._settings
        if settings.get("num_frames"):
            return FrameDefaults(num_frames=settings["num_frames"])
        return FrameDefaults(
            num_frames=settings.get("max_frames") or _MOST_FRAMES,
            fps=self._rate,
            min_frames=settings.get("min_frames") or _FEWEST_FRAMES,
            multiple=self.temporal_patch_size,
        )

    @property
    def token_side(self) -> int:
        """Pixels along a side of what becomes a token."""
        return self.patch_size * self.merge_size

    def resize(self, frames: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Resize uint8 ``(T, H, W, 3)``, keeping the aspect as nearly as whole tokens allow. Raises PromptError."""
        check_frames(frames)
        return self._filter.resize(frames, *self.frame_size(*frames.shape[:3]))

    def resize_image(self, image: NDArray[np.uint8], images: int) -> NDArray[np.uint8]:
        """Resize an image, uint8 ``(1, H, W, 3)``, within the checkpoint's bounds for images. Raises PromptError."""
        check_frames(image)
        height, width = image.shape[1:3]
        check_aspect(height, width)
        return self._image_filter.resize(image, *fitted_size(height, width, self.token_side, *self._image_pixels))

    @abstractmethod
    def frame_size(self, frames: int, height: int, width: int) -> tuple[int, int]:
        """Return the height and width to resize to, in pixels; multiples of a token's side. Raises PromptError."""

    def video_grid(self, frames: NDArray[np.uint8]) -> tuple[int, int, int]:
        """For patches of two frames ``(T / 2, H / side, W / side)``, the first rounded up."""
        side = self.token_side
        return math.ceil(len(frames) / self.temporal_patch_size), frames.shape[1] // side, frames.shape[2] // side

    def _image_part(self, frames: NDArray[np.uint8], size: tuple[int, int]) -> VideoPart:
        grid = self.grid(frames)
        _, height, width = grid
        return self._single_run(
            partial(self.patches, frames, self._image_filter),
            1,
            height * width,
            self._grid_positions(*grid),
            max(height, width),
            "image",
        )

    @staticmethod
    def _grid_positions(time: int, height: int, width: int) -> NDArray[np.int64]:
        """``(3, time * height * width)``: the moment, row and column of each token."""
        return np.indices((time, height, width)).reshape(3, -1)

    def grid(self, frames: NDArray[np.uint8]) -> tuple[int, int, int]:
        """As `video_grid`. Raises PromptError if the frames are not as `resize` returns them."""
        side = self.token_side
        check_frames(frames)
        if frames.shape[1] % side or frames.shape[2] % side:
            raise PromptError(
                f"frames must have sides that are multiples of {side}, as `resize` returns them, not {frames.shape}"
            )
        return self.video_grid(frames)

    def patches(self, frames: NDArray[np.uint8], pixel_filter: FrameFilter | None = None) -> NDArray[np.float32]:
        """Cut resized frames, uint8 ``(T, H, W, 3)``, into patches, grouped by the token that they become.

        ``pixel_filter``: normalises them, if not as a video.

        Returns:
            float32 ``(t, h, w, patches of a token, numbers of a patch)``. ``t`` is T halved and rounded up; an odd last
            frame is repeated. ``h`` and ``w`` count tokens. Flattened except for the last dimension, this is
            transformers' ``pixel_values_videos``.

        Raises:
            PromptError: the frames are not as `resize` returns them.
        """
        depth, merge = self.temporal_patch_size, self.merge_size
        time, height, width = self.grid(frames)
        if missing := -len(frames) % depth:
            frames = np.concatenate([frames, np.repeat(frames[-1:], missing, axis=0)])
        pixels = (pixel_filter or self._filter).normalize(frames)
        patch = self.patch_size
        by_patch = pixels.reshape(time, depth, 3, height, merge, patch, width, merge, patch)
        grouped = by_patch.transpose(0, 3, 6, 4, 7, 2, 1, 5, 8)
        return grouped.reshape(time, height, width, merge * merge, 3 * depth * patch * patch)

    @staticmethod
    def _check_times(frames: int, timestamps_s: Sequence[float]) -> None:
        """Raise PromptError unless there is a time for each frame, or none at all."""
        if timestamps_s and len(timestamps_s) != frames:
            raise PromptError(f"there are {frames} frames, but {len(timestamps_s)} timestamps")

    def _check_patches(self, vision: Mapping[str, Any]) -> None:
        for name, key, ours in (
            ("patch_size", "patch_size", self.patch_size),
            ("temporal_patch_size", "temporal_patch_size", self.temporal_patch_size),
            ("merge_size", "spatial_merge_size", self.merge_size),
        ):
            if vision.get(key, ours) != ours:
                raise CheckpointError(
                    f"{self._folder}: frames are cut with {name}={ours}, but vision_config.{key} is {vision[key]!r}"
                )
        if self._settings.get("do_resize", True) is False:
            raise CheckpointError(f"{self._folder}: do_resize=False is not supported: frames must fit whole tokens")


def fitted_size(
    height: int, width: int, side: int, fewest: int, most: int, frames: int = 1, depth: int = 1
) -> tuple[int, int]:
    """Return the height and width nearest to the aspect, multiples of ``side``, of ``fewest`` to ``most`` pixels.

    The bounds are those of all ``frames``, of which the patches hold ``depth`` each.
    """
    rounded = round(height / side) * side, round(width / side) * side
    pixels = round(frames / depth) * depth * rounded[0] * rounded[1]
    if pixels > most:
        shrink = math.sqrt(frames * height * width / most)
        return (
            max(side, math.floor(height / shrink / side) * side),
            max(side, math.floor(width / shrink / side) * side),
        )
    if pixels < fewest:
        grow = math.sqrt(fewest / (frames * height * width))
        return math.ceil(height * grow / side) * side, math.ceil(width * grow / side) * side
    return rounded


def check_aspect(height: int, width: int, given: tuple[int, int] | None = None) -> None:
    """Raise PromptError if one side is more than 200 times the other.

    ``given``: height and width for the error, if the frames had others.
    """
    if max(height, width) > _LARGEST_ASPECT * min(height, width):
        shown_height, shown_width = given or (height, width)
        raise PromptError(
            f"frames of {shown_width}x{shown_height} are more than {_LARGEST_ASPECT} times as long as wide, "
            "which this model does not take; crop them"
        )
