"""Reading with decord, within the limits of what it does right.

What decord 0.6 does with a file, and what is done about it here:

- It seeks by counting key frames in file order but numbers frames in time order: with *open* groups of pictures
  (what x265 writes by default) random access silently gives wrong frames, as it does for MPEG program streams and WMV.
  Decoding from the start without a seek gives the right ones. So it may seek only where the container's index
  proves it harmless (`Mp4Index.exact_seeking`); everything else is decoded from the start to the end.
- Frames that an edit list hides (as ``ffmpeg -ss ... -c copy`` writes) are counted but never come out: indices are
  shifted, and reading the last ones repeats the last frame (or never returns: decord issue 373). They are those with a
  negative time, or behind what the edit list shows.
- Frames that cannot be decoded are replaced by their neighbours. ``fault_tol`` makes that an error.
- On a busy machine it sometimes takes the end of the file for lost frames: with one thread about one time in four, with
  two or more hardly ever. So it gets at least two, and what it calls lost is lost only if it says so three times.
- Damage within a frame is only printed by FFmpeg (`complaints`).
- Times are float32 seconds, and nonsense where packets have none.
"""

from __future__ import annotations

import importlib
import math
import os
import re
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import numpy as np

from pvlm.errors import VideoError
from pvlm.video.complaints import Witness, witness
from pvlm.video.containers import check_file
from pvlm.video.selection import SAME_TIME_S

_ANY_FAULT = 1e-12
"""As a share of the frames; 0 would mean: any number is fine."""

_SOURCE_LINE = re.compile(r"(\[[\d:]+\] )?\S+\.cc:\d+: ")
"""When, and where in its source, decord raised an error: once for each of its layers, and of no use here."""

_ATTEMPTS = 3
"""How often a file is decoded before its frames are called lost."""


class _FramesLostError(VideoError):
    """decord gave up on some frames, perhaps for no good reason."""


class DecordReader:
    """A `VideoReader` that uses decord. Raises VideoError if the file cannot be opened."""

    def __init__(self, path: str) -> None:
        self._path = path
        index = check_file(path, path)
        self._seek = index is not None and index.exact_seeking
        self._open()
        encoded = len(self._reader)
        if index is not None and encoded != index.samples and not (index.hides_frames and encoded < index.samples):
            raise VideoError(path, f"the file's index lists {index.samples} frames, but {encoded} can be found")
        self._keys: list[int] = self._reader.get_key_indices()
        self._timestamps = _usable_times(self._reader.get_frame_timestamp(range(encoded)))
        self._num_frames = encoded
        if self._timestamps is not None:
            limit = math.inf if index is None or index.shown_s is None else index.shown_s - SAME_TIME_S
            self._timestamps = [time for time in self._timestamps if 0 <= time < limit]
            self._num_frames = len(self._timestamps)
        if self._num_frames < 1:
            raise VideoError(path, "it has no frames")
        if self._num_frames < encoded or self._keys[:1] != [0]:
            self._seek = False
        fps = float(self._reader.get_avg_fps())
        self._fps = fps if math.isfinite(fps) and fps > 0 else None

    @property
    def num_frames(self) -> int:
        return self._num_frames

    @property
    def fps(self) -> float | None:
        return self._fps

    @property
    def timestamps(self) -> Sequence[float] | None:
        return self._timestamps

    def read(self, indices: Sequence[int]) -> np.ndarray:
        """See `VideoReader.read`. Raises VideoError if a frame cannot be decoded, or if FFmpeg complains."""
        if self._seek:
            with suppress(_FramesLostError):
                frames, log = self._get_batch(indices)
                if not log.lines():
                    return frames
            # Is it the file or the seek? Decoding from the start tells.
            self._seek = False
            self._open()
        return self._read_in_order(indices)

    def finish(self) -> None:
        """Without seeks a lost frame shifts all later ones, and shows only at the end; so go there."""
        if not self._seek and self._next < self._num_frames:
            self._read_in_order([self._num_frames - 1])

    def _open(self) -> None:
        decord: Any = importlib.import_module("decord")
        threads = max(2, min(4, len(os.sched_getaffinity(0))))
        with witness() as log, open(self._path, "rb") as file:
            # Named by its number: FFmpeg sees patterns and protocols in names, and formats in their endings.
            name = f"/dev/fd/{file.fileno()}"
            try:
                decord.logging.set_level(decord.logging.ERROR)
                self._reader: Any = decord.VideoReader(name, num_threads=threads, fault_tol=_ANY_FAULT)
            except (decord.DECORDError, RuntimeError, AssertionError) as error:
                self._reader = None
                reason = str(error)
        if self._reader is None:
            detail = next(iter(log.complaints()), "")
            if "cannot find video stream" in reason:
                reason = "there is no video stream in it, or one whose codec decord does not know"
            else:
                reason = "decord cannot open it: it is damaged, or not a video"
            raise VideoError(self._path, f"{reason} ({detail})" if detail else reason)
        self._next = 0

    def _read_in_order(self, indices: Sequence[int]) -> np.ndarray:
        for _ in range(_ATTEMPTS - 1):
            try:
                return self._read_on(indices)
            except _FramesLostError:
                self._open()
        return self._read_on(indices)

    def _read_on(self, indices: Sequence[int]) -> np.ndarray:
        """Read without a seek: decord seeks when it passes a key frame, so the frame before each is read as well."""
        wanted = set(indices)
        stones = {key - 1 for key in self._keys if self._next < key <= indices[-1]}
        steps = sorted(wanted | stones)
        frames: list[np.ndarray] = []
        for start in range(0, len(steps), 8):
            part = steps[start : start + 8]
            batch, log = self._get_batch(part)
            if complaints := log.complaints():
                more = f" (and {len(complaints) - 1} more)" if len(complaints) > 1 else ""
                raise VideoError(self._path, f"it is damaged: the decoder says {complaints[0]!r}{more}")
            frames.extend(frame for step, frame in zip(part, batch, strict=True) if step in wanted)
        return np.stack(frames)

    def _get_batch(self, indices: Sequence[int]) -> tuple[np.ndarray, Witness]:
        decord: Any = importlib.import_module("decord")
        failure: Exception | None = None
        with witness() as log:
            try:
                frames = self._reader.get_batch(list(indices)).asnumpy()
            except decord.DECORDLimitReachedError:
                failure = _FramesLostError(self._path, "it is damaged: some of its frames cannot be decoded")
            except decord.DECORDError as error:
                reason = _SOURCE_LINE.sub("", str(error).strip().splitlines()[0])
                failure = VideoError(self._path, f"it is damaged: decord failed with {reason!r}")
        if failure is not None:
            raise failure
        self._next = indices[-1] + 1
        return frames, log


def _usable_times(times_s: np.ndarray) -> list[float] | None:
    """When frames begin, if those are sane: ascending numbers within a week of 0."""
    starts = times_s[:, 0].astype(np.float64)
    if not np.all(np.isfinite(starts)) or np.abs(starts).max() > 604_800 or np.any(np.diff(starts) < 0):
        return None
    return [float(time) for time in starts]
