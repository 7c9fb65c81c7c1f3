"""How a frame is turned and mirrored before it is shown."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from av.video.frame import VideoFrame

UPRIGHT = (1, 0, 0, 1)


def display_matrix(frame: VideoFrame) -> tuple[int, ...]:
    """The upper left part ``(a, b, c, d)`` of a frame's display matrix: x' = a x + c y, y' = b x + d y (ISO/IEC
    14496-12). Any scale; `UPRIGHT` without a matrix.
    """
    found: Any = frame.side_data
    data = next((data for data in found if data.type.name == "DISPLAYMATRIX"), None)
    if data is None:
        return UPRIGHT
    a, b, _, c, d = (int(value) for value in np.frombuffer(bytes(data), "=i4")[:5])
    return a, b, c, d


def upright(frame: np.ndarray, matrix: tuple[int, ...]) -> np.ndarray:
    """A frame ``(H, W, 3)`` as it is shown: a multiple of a quarter turn (the nearest), mirrored or not."""
    a, b, c, d = matrix
    if abs(b) + abs(c) > abs(a) + abs(d):
        frame = frame.transpose(1, 0, 2)
        a, d = c, b
    return frame[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]
