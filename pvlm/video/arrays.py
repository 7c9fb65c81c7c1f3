"""Videos that are already decoded: arrays, tensors and lists of images."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from pvlm.errors import VideoError
from pvlm_protocols.limits import MAX_FRAME_SIDE


def as_frames(source: Any) -> np.ndarray | None:
    """uint8 ``(T, H, W, 3)`` of an array, a torch tensor, a PIL image or a list of them; None for anything else.

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
    if _is_image(source):
        return _from_images([source])
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
    upright = []
    for position, image in enumerate(images):
        if not _is_image(image):
            raise VideoError(name, f"a list must hold PIL images, but item {position} is a {type(image).__name__}")
        try:
            upright.append(rgb_of_image(image, name, f"image {position}"))
        except (OSError, SyntaxError, ValueError) as error:
            raise VideoError(name, f"image {position} cannot be read: {error}") from error
        if upright[-1].shape != upright[0].shape:
            (high, wide, _), (first_high, first_wide, _) = upright[-1].shape, upright[0].shape
            raise VideoError(
                name,
                f"images must be of one size, but image {position} is {wide}x{high} and image 0 is "
                f"{first_wide}x{first_high}; resize them",
            )
    return _checked(np.stack(upright), "list of images")


def _is_image(source: Any) -> bool:
    return hasattr(source, "convert") and hasattr(source, "getbands") and hasattr(source, "size")


def rgb_of_image(image: Any, name: str, label: str) -> np.ndarray:
    """uint8 ``(H, W, 3)`` of a PIL image, turned as its EXIF data say.

    Raises VideoError (for ``name``) for more than 8 bits a channel, where the range of the numbers is unknown.
    """
    if image.mode.startswith(("I", "F")):
        raise VideoError(
            name,
            f"{label} has the mode {image.mode!r}, whose numbers have no known range; scale them to 0 .. 255 and give "
            "an image of mode 'L' or 'RGB'",
        )
    from PIL import ImageOps

    return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
