"""What `pvlm.video.process` and the process that it starts, `pvlm.video.decoding`, tell each other, as JSON."""

from __future__ import annotations

from typing import TypedDict


class Request(TypedDict):
    path: str
    name: str
    """How errors call the video."""
    reader: str
    num_frames: int
    consecutive: bool
    fps: float | None
    """If given, ``num_frames`` and ``consecutive`` do not count, unless there are ``rate_bounds``."""
    rate_bounds: tuple[int, int] | None
    """``fps`` is a default: no fewer frames than the first, a multiple of the second, and at most ``num_frames``; for a
    video without times, ``consecutive`` instead."""
    start: float | None
    end: float | None
    max_bytes: int
    timeout_s: float
    frames_fd: int
    reply_fd: int


class Reply(TypedDict, total=False):
    """Either all of the first four, or the last three."""

    shape: tuple[int, ...]
    indices: tuple[int, ...]
    timestamps_s: tuple[float, ...]
    source: tuple[float | None, int]
    """Frames a second, frames."""
    error: str
    """``video``, ``option`` or ``failure``."""
    reason: str
    traceback: str
