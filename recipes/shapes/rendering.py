"""Draws clips: every shape is a signed distance, so that edges are smooth at any size."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .world import BACKGROUNDS, COLORS, Clip, FrameState, ThingState

FloatArray = NDArray[np.float32]
_REACH = 1.3  # no shape extends further than this many radii from its centre


def render(clip: Clip, size: int = 224) -> NDArray[np.uint8]:
    """The frames of a clip as a (frames, size, size, 3) array of RGB bytes."""
    return np.stack([render_frame(state, size) for state in clip.states])


def render_frame(state: FrameState, size: int) -> NDArray[np.uint8]:
    """One frame as a (size, size, 3) array of RGB bytes."""
    image = np.empty((size, size, 3), np.float32)
    image[:] = BACKGROUNDS[state.background]
    for thing in state.things:
        if thing.visible:
            _draw(image, thing)
    return np.rint(image).astype(np.uint8)


def _draw(image: FloatArray, state: ThingState) -> None:
    size = image.shape[0]
    reach = state.radius * _REACH + 1.0 / size
    left, right = _span(state.x, reach, size)
    top, bottom = _span(state.y, reach, size)
    dx = (np.arange(left, right, dtype=np.float32) + 0.5) / size - state.x
    dy = (np.arange(top, bottom, dtype=np.float32) + 0.5) / size - state.y
    distance = signed_distance(state.thing.shape, dx[None, :], dy[:, None], state.radius)
    cover = np.clip(0.5 - distance * size, 0.0, 1.0)[..., None]
    color = np.array(COLORS[state.color], np.float32)
    patch = image[top:bottom, left:right]
    patch += (color - patch) * cover


def _span(center: float, reach: float, size: int) -> tuple[int, int]:
    low = max(0, int((center - reach) * size))
    return low, min(size, int((center + reach) * size) + 1)


def signed_distance(shape: str, dx: FloatArray, dy: FloatArray, radius: float) -> FloatArray:
    """How far each point is outside a shape's edge (negative inside); y points down."""
    across, down = np.abs(dx), np.abs(dy)
    if shape == "circle":
        return np.hypot(dx, dy) - radius
    if shape == "square":
        return np.maximum(across, down) - 0.88 * radius
    if shape == "triangle":
        return np.maximum(0.866 * across - 0.5 * dy, dy) - 0.55 * radius
    if shape == "diamond":
        return (1.4 * across + down - 1.25 * radius) / 1.72
    if shape == "ring":
        return np.abs(np.hypot(dx, dy) - 0.75 * radius) - 0.25 * radius
    if shape == "cross":
        flat = np.maximum(across - radius, down - 0.3 * radius)
        upright = np.maximum(down - radius, across - 0.3 * radius)
        return np.minimum(flat, upright)
    raise ValueError(f"unknown shape {shape!r}")
