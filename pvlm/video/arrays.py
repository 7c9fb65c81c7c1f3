"""Videos that are already decoded: arrays, tensors and lists of images."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from pvlm.errors import VideoError
from pvlm_protocols.limits import MAX_FRAME_SIDE


def as_frames(source: Any) -> np.ndarray | None:
    """uint8 ``(T, H, W, 3)`` of an array, a torch tensor or a list of PIL images; None for anything else.

    An array is not copied. Raises VideoError for a wrong dtype or shape, no frames, and images of different sizes.
    """
    if isinstance(source, np.ndarray):
        return _checked(source, "array")
    torch = sys.modules.get("torch")  # a tensor exists only where torch is imported
    if torch is not None and isinstance(source, torch.Tensor):
        if source.dtype != torch.uint8:
            raise VideoError("<tensor>", f"frames must be uint8, not {source.dtype}; {_REMEDY}")
        return _checked(source.detach().cpu().numpy(), "tensor")
    if isinstance(source, list | tuple):
        return _from_images(source)
    return None


_REMEDY = "scale to 0 .. 255 and convert: frames.astype('uint8')"


def _checked(frames: np.ndarray, kind: str) -> np.ndarray:
    name = f"<{kind} of shape {tuple(frames.shape)}>"
    if frames.dtype != np.uint8:
        raise VideoError(name, f"frames must be uint8, not {frames.dtype}; {_REMEDY}")
    if frames.ndim != 4 or frames.shape[3] != 3:
        hint = "; transpose it: the channels are last here" if frames.ndim == 4 and frames.shape[1] == 3 else ""
        raise VideoError(name, f"frames must have the shape (T, H, W, 3), RGB{hint}")
    if 0 in frames.shape:
        raise VideoError(name, "it has no frames" if frames.shape[0] == 0 else "its frames have no pixels")
    check_sides(frames.shape, name)
    return frames


def check_sides(shape: Sequence[int], name: str) -> None:
    """Raise VideoError (for ``name``) if frames ``(T, H, W, 3)`` exceed the size that any model uses."""
    _, height, width, _ = shape
    if max(height, width) > MAX_FRAME_SIDE:
        raise VideoError(
            name, f"its frames are {width}x{height}, beyond the limit of {MAX_FRAME_SIDE} pixels a side; scale it down"
        )


def _from_images(images: Sequence[Any]) -> np.ndarray:
    name = f"<list of {len(images)} images>"
    if not images:
        raise VideoError(name, "it has no frames")
    for position, image in enumerate(images):
        if not (hasattr(image, "convert") and hasattr(image, "size")):
            raise VideoError(name, f"a list must hold PIL images, but item {position} is a {type(image).__name__}")
        if image.size != images[0].size:
            wide, high = image.size
            raise VideoError(
                name,
                f"images must be of one size, but image {position} is {wide}x{high} and image 0 is "
                f"{images[0].size[0]}x{images[0].size[1]}; resize them",
            )
    try:
        return _checked(np.stack([np.asarray(image.convert("RGB")) for image in images]), "list of images")
    except OSError as error:
        raise VideoError(name, f"an image cannot be read: {error}") from error
