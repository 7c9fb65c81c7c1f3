"""Which frames of a video are taken: pure functions of numbers.

Frames are counted from 0. First a *range* of frames is chosen, from ``start`` and ``end`` in seconds (`frame_range`; by
default all frames); then the frames within the range ``first .. last``, both included:

- `uniform`, n frames: ``round(linspace(first, last, n))``, halves to even as numpy does. First and last are
  included; n = 1 takes the first. A range of fewer than n frames is taken whole, so no frame ever comes twice.
- `consecutive`, up to n frames: the whole range if it has no more than n frames, otherwise `uniform`.
- `at_rate`, f frames a second: for k = 0, 1, 2, ... the frame nearest in time to ``t(first) + k / f``, as long as that
  time is not after ``t(last)``; of two equally near frames the earlier. A frame that is nearest to several
  times comes once.
- `at_default_rate`, f frames a second within bounds: as `at_rate`; where that gives too few or too many frames, the
  least or the most that are allowed, uniformly.

Times of frames are the container's own where it has them (a video need not have a constant rate), else ``index / fps``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from pvlm.errors import OptionError
from pvlm_protocols.limits import MAX_VIDEO_FRAMES

SAME_TIME_S = 0.0005
"""Times closer than this are the same time: containers and readers round (decord: float32 seconds)."""

MAX_INSTANTS = 10_000_000


def uniform(first: int, last: int, num_frames: int) -> tuple[int, ...]:
    """``min(num_frames, last - first + 1)`` indices, ascending, without repetition; see the module's docstring."""
    _check_range(first, last, num_frames)
    if last - first + 1 <= num_frames:
        return tuple(range(first, last + 1))
    return tuple(int(index) for index in np.linspace(first, last, num_frames).round())


def consecutive(first: int, last: int, num_frames: int) -> tuple[int, ...]:
    """Every frame of a range of up to ``num_frames`` frames; a longer range is sampled uniformly.

    The two cases are one formula, because `uniform` takes a short range whole.
    """
    return uniform(first, last, num_frames)


def at_rate(times_s: Sequence[float], first: int, last: int, fps: float) -> tuple[int, ...]:
    """Indices of the frames nearest to ``times_s[first] + k / fps``, ascending, without repetition.

    ``times_s``: ascending, one for each frame of the video, in seconds. Raises OptionError if the rate is so high that
    there would be more than ten million instants.
    """
    _check_range(first, last, 1)
    if not (math.isfinite(fps) and fps > 0):
        raise ValueError(f"fps must be a positive number, not {fps!r}")
    times = np.asarray(times_s[first : last + 1], dtype=np.float64)
    span = float(times[-1] - times[0])
    steps = (span + SAME_TIME_S) * fps
    if steps > MAX_INSTANTS:
        raise OptionError(f"fps={fps:g} over {span:g} s asks for {steps:.3g} instants; use a lower fps")
    instants = times[0] + np.arange(math.floor(steps) + 1) / fps
    after = np.clip(np.searchsorted(times, instants), 1, max(len(times) - 1, 1))
    before = after - 1
    after = np.minimum(after, len(times) - 1)
    nearest = np.where(times[after] - instants < instants - times[before] - 1e-9, after, before)
    return tuple(int(index) + first for index in np.unique(nearest))


def at_default_rate(
    times_s: Sequence[float], first: int, last: int, fps: float, fewest: int, most: int, multiple: int
) -> tuple[int, ...]:
    """`at_rate`, but no fewer than ``fewest`` frames, no more than ``most``, and a multiple of ``multiple``.

    A range of fewer frames gives as many as it can; one of fewer than ``multiple`` is taken whole.
    """
    found = at_rate(times_s, first, last, fps)
    count = min(max(len(found), fewest), most, last - first + 1)
    count = count - count % multiple or count
    return found[:count] if count <= len(found) <= most else uniform(first, last, count)


def frame_range(times_s: Sequence[float], duration_s: float, start: float | None, end: float | None) -> tuple[int, int]:
    """First and last frame between two times in seconds: from the frame on screen at ``start`` to the last that begins
    before ``end``. Never empty.

    ``times_s``: ascending, when each frame begins; ``duration_s``: when the last one ends. Raises OptionError for a
    ``start`` at or behind the end of the video, and for an ``end`` behind it by more than a frame.
    """
    times = np.asarray(times_s, dtype=np.float64)
    if start is not None and start >= duration_s - SAME_TIME_S:
        raise OptionError(f"start={start:g} s is not within the video, which ends at {duration_s:g} s")
    frame_s = duration_s / len(times)
    if end is not None and end > duration_s + frame_s + SAME_TIME_S:
        raise OptionError(f"end={end:g} s is beyond the end of the video ({duration_s:g} s); leave it out for the rest")
    first, last = 0, len(times) - 1
    if start is not None:
        first = max(0, int(np.searchsorted(times, start + SAME_TIME_S, side="right")) - 1)
    if end is not None:
        last = int(np.searchsorted(times, end - SAME_TIME_S, side="left")) - 1
    return first, max(first, last)


def check_count(frames: int) -> None:
    """Raise OptionError for more frames than one answer may be about."""
    if frames > MAX_VIDEO_FRAMES:
        raise OptionError(
            f"{frames} frames would be taken, more than the limit of {MAX_VIDEO_FRAMES}; ask for fewer with "
            "num_frames, a lower fps, or a part of the video (start, end)"
        )


def _check_range(first: int, last: int, num_frames: int) -> None:
    if not 0 <= first <= last:
        raise ValueError(f"no frames in the range {first} .. {last}")
    if num_frames < 1:
        raise ValueError(f"num_frames must be at least 1, not {num_frames}")
