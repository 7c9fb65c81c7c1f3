"""An image of any size as LLaVA-OneVision takes it: the whole in the tower's size, and pieces of an enlarged copy.

Sizes are pairs of height and width. The numbers are those of transformers' image processor and of the model's
``pack_image_features``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pvlm_protocols.backend import PromptError

from ...processing.pixels import FrameFilter

Size = tuple[int, int]

_TIMES = range(1, 7)
_ASPECT_RATIO = "anyres_max_9"  # of transformers' LlavaOnevisionConfig


@dataclass(frozen=True)
class ImageLayout:
    """How an image becomes pieces, and their features tokens."""

    pieces: Size
    """Pieces down and across."""
    crop: tuple[slice, slice]
    """Rows and columns of the joined pieces' features that are not padding."""
    tokens: Size
    """Rows and columns after shrinking; each row ends with a newline."""
    shrinks: bool


class ImageGrid:
    """The resolutions that a checkpoint cuts images into.

    Args:
        config: config.json.
        side: pixels along a side of a piece.
        patches: of a piece, along a side.
    """

    def __init__(self, config: Mapping[str, Any], side: int, patches: int) -> None:
        self._side = side
        self.patches = patches
        usual = [[384 * rows, 384 * columns] for rows in _TIMES for columns in _TIMES]
        self._resolutions: Sequence[Sequence[int]] = config.get("image_grid_pinpoints") or usual
        ratio: str = config.get("vision_aspect_ratio") or _ASPECT_RATIO
        self._most_pieces = int(ratio.strip("anyres_max_"))  # noqa: B005  as transformers reads it

    def resize(self, image: NDArray[np.uint8], filtered: FrameFilter) -> NDArray[np.uint8]:
        """Cut an image, uint8 ``(1, H, W, 3)``, into uint8 ``(1 + pieces, side, side, 3)``, the whole first."""
        side = self._side
        height, width = image.shape[1:3]
        target = self._resolution((height, width))
        down, across = target[0] / height, target[1] / width
        if across < down:
            inner = min(math.ceil(height * across), target[0]), target[1]
        else:
            inner = target[0], min(math.ceil(width * down), target[1])
        top, left = (target[0] - inner[0]) // 2, (target[1] - inner[1]) // 2
        canvas = np.zeros((*target, 3), np.uint8)
        canvas[top : top + inner[0], left : left + inner[1]] = filtered.resize(image, *inner)[0]
        pieces = canvas.reshape(target[0] // side, side, target[1] // side, side, 3).swapaxes(1, 2)
        return np.concatenate([filtered.resize(image, side, side), pieces.reshape(-1, side, side, 3)])

    def layout(self, size: Size) -> ImageLayout:
        """Return the layout of an image of this size."""
        height, width = size
        target = self._resolution(size)
        pieces = target[0] // self._side, target[1] // self._side
        rows, columns = pieces[0] * self.patches, pieces[1] * self.patches
        top = left = 0
        if width / height > columns / rows:
            top = (rows - int(round(height * (columns / width), 7))) // 2
        else:
            left = (columns - int(round(width * (rows / height), 7))) // 2
        crop = slice(top, rows - top), slice(left, columns - left)
        rows, columns = rows - 2 * top, columns - 2 * left
        ratio = math.sqrt(rows * columns / (self._most_pieces * self.patches**2))
        shrinks = ratio > 1.1
        tokens = (int(rows // ratio), int(columns // ratio)) if shrinks else (rows, columns)
        return ImageLayout(pieces, crop, tokens, shrinks)

    def _resolution(self, size: Size) -> Size:
        """The resolution that shows most of an image of this size, and of those the smallest."""

        def merit(resolution: Sequence[int]) -> tuple[int, int]:
            scale = min(resolution[1] / size[1], resolution[0] / size[0])
            shown = min(int(size[1] * scale) * int(size[0] * scale), size[0] * size[1])
            return shown, shown - resolution[0] * resolution[1]

        height, width = max(self._resolutions, key=merit)
        if height % self._side or width % self._side:
            raise PromptError(
                f"this checkpoint takes no images: its image_grid_pinpoints has {height} x {width}, which pieces of "
                f"{self._side} pixels do not fill"
            )
        return height, width


def squared(image: NDArray[np.uint8], colour: Sequence[float]) -> NDArray[np.uint8]:
    """Pad an image, uint8 ``(1, H, W, 3)``, to a square with a colour, 0 to 1."""
    height, width = image.shape[1:3]
    if height == width:
        return image
    side = max(height, width)
    square = np.empty((1, side, side, 3), np.uint8)
    square[:] = [int(part * 255) for part in colour]
    top, left = (side - height) // 2, (side - width) // 2
    square[:, top : top + height, left : left + width] = image
    return square
