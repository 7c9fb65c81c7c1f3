"""Frames to pixels: a checkpoint's settings for frames, and the filter that all families share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pvlm_protocols.backend import CheckpointError, PromptError

from .files import read_optional_settings

# Of transformers' video processors, for checkpoints that leave a value out.
_CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
_CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def frame_settings(folder: Path) -> dict[str, Any]:
    """Return the checkpoint's video settings, or else its image settings. Raises CheckpointError."""
    nested = read_optional_settings(folder, "processor_config.json") or {}
    settings = (
        read_optional_settings(folder, "video_preprocessor_config.json")
        or nested.get("video_processor")
        or read_optional_settings(folder, "preprocessor_config.json")
        or nested.get("image_processor")
    )
    if not settings:
        raise CheckpointError(f"{folder} holds neither video_preprocessor_config.json nor preprocessor_config.json")
    return dict(settings)


def image_settings(folder: Path) -> dict[str, Any]:
    """Return the checkpoint's image settings, or else its video settings. Raises CheckpointError."""
    nested = read_optional_settings(folder, "processor_config.json") or {}
    settings = read_optional_settings(folder, "preprocessor_config.json") or nested.get("image_processor")
    return dict(settings) if settings else frame_settings(folder)


class FrameFilter:
    """Resizes frames, and turns bytes into normalised numbers, by the checkpoint's settings."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self.mean: tuple[float, ...] = tuple(settings.get("image_mean") or _CLIP_MEAN)
        self._resample = Image.Resampling(settings.get("resample", Image.Resampling.BICUBIC))
        self._levels = _normalized_levels(settings)

    def resize(self, frames: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
        """Resize uint8 ``(T, H, W, 3)`` to ``(T, height, width, 3)`` by Pillow; does not copy frames of that size."""
        if frames.shape[1:3] == (height, width):
            return frames
        resized = np.empty((len(frames), height, width, 3), np.uint8)
        for index, frame in enumerate(frames):
            resized[index] = np.asarray(Image.fromarray(frame).resize((width, height), self._resample))
        return resized

    def normalize(self, frames: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Turn uint8 ``(T, H, W, 3)`` into float32 ``(T, 3, H, W)``."""
        return np.stack([levels[frames[..., channel]] for channel, levels in enumerate(self._levels)], axis=1)


def check_frames(frames: NDArray[np.uint8]) -> None:
    """Raise PromptError unless ``frames`` is uint8 ``(T, H, W, 3)`` and not empty."""
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or 0 in frames.shape:
        raise PromptError(f"frames must be uint8 (T, H, W, 3), T >= 1, not {frames.dtype} {frames.shape}")


def _normalized_levels(settings: dict[str, Any]) -> NDArray[np.float32]:
    """float32 ``(3, 256)``: the pixel value of each byte, by channel.

    The roundings are transformers': it rescales in float64 and then uses float32.
    """
    levels = np.arange(256, dtype=np.float64)
    if settings.get("do_rescale", True):
        levels = levels * settings.get("rescale_factor", 1 / 255)
    table = np.repeat(levels.astype(np.float32)[None], 3, axis=0)
    if settings.get("do_normalize", True):
        mean = np.array(settings.get("image_mean", _CLIP_MEAN), np.float32).reshape(-1, 1)
        std = np.array(settings.get("image_std", _CLIP_STD), np.float32).reshape(-1, 1)
        table = (table - mean) / std
    return table
