"""The JSON objects between `pvlm.video.process` and the process that it starts, `pvlm.video.decoding`."""

from __future__ import annotations

from typing import TypedDict


class Request(TypedDict):
    """One video to decode."""

    path: str
    name: str
    """The video's name in errors."""
    reader: str
    num_frames: int
    consecutive: bool
    fps: float | None
    """If given, ``num_frames`` and ``consecutive`` are ignored, unless ``rate_bounds`` are given."""
    rate_bounds: tuple[int, int] | None
    """``fps`` is a default: at least the first number of frames, a multiple of the second, and at most ``num_frames``;
    ``consecutive`` replaces it for a video without times."""
    start: float | None
    end: float | None
    max_bytes: int
    timeout_s: float
    frames_fd: int
    reply_fd: int


class Reply(TypedDict, total=False):
    """Either the first four fields, or the last three."""

    shape: tuple[int, ...]
    indices: tuple[int, ...]
    timestamps_s: tuple[float, ...]
    source: tuple[float | None, int]
    """Frames a second, frames."""
    error: str
    """``video``, ``option`` or ``failure``."""
    reason: str
    traceback: str
