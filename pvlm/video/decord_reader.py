"""A video reader that uses decord, and works around its faults.

The faults of decord 0.6, and their remedies:

- decord seeks by counting key frames in file order, but numbers frames in time order. With *open* groups of pictures
  (x265's default) random access silently returns wrong frames, as it does for MPEG program streams and WMV. Decoding
  from the start returns the right ones. So the reader seeks only where the table of packets proves it safe, and decodes
  everything else from the start to the end.
- decord counts frames that an edit list hides (as ``ffmpeg -ss ... -c copy`` writes), but never returns them. Indices
  are shifted, and reading the last ones repeats the last frame, or never returns (decord issue 373). The table of
  packets has the right number and the right times.
- decord replaces frames that it cannot decode by their neighbours. ``fault_tol`` makes that an error.
- On a busy machine decord sometimes takes the end of the file for lost frames: with one thread about one time in four,
  with more threads hardly ever. So it gets at least two threads, and three attempts before frames count as lost.
- FFmpeg only prints damage within a frame (`complaints`).
- Times are float32 seconds, and meaningless where packets have none.
- decord turns frames, but cannot mirror them, and its FFmpeg (4.1) guesses the format of a file. So mirrored videos and
  all but a few containers are refused.
"""

from __future__ import annotations

import importlib
import math
import os
import re
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import av
import numpy as np

from pvlm.errors import VideoError
from pvlm.video.complaints import Witness, summary, witness
from pvlm.video.containers import recognize
from pvlm.video.orientation import display_matrix
from pvlm.video.packets import OpenVideo, read_table, seconds

_ANY_FAULT = 1e-12
"""Tolerated share of faulty frames; 0 would tolerate any number."""

_SOURCE_LINE = re.compile(r"(\[[\d:]+\] )?\S+\.cc:\d+: ")
"""Time and source line of a decord error, once for each of its layers: useless to users."""

_READ_RIGHT = frozenset(("mov", "matroska", "avi", "flv", "mpeg", "asf"))
"""FFmpeg's names of the containers that decord reads rightly."""

_ATTEMPTS = 3
"""How often a file is decoded before its frames count as lost."""


class _FramesLostError(VideoError):
    """decord gave up on some frames, perhaps without a reason."""


class DecordReader:
    """A `VideoReader` that uses decord. Raises VideoError if it cannot open the file."""

    def __init__(self, path: str) -> None:
        self._path = path
        container = recognize(path)
        if container.demuxer not in _READ_RIGHT or container.offset:
            raise VideoError(path, f"decord cannot read {container.name}; use the reader 'auto'")
        table = read_table(path, container) if container.indexed else None
        if table is not None and _is_mirrored(OpenVideo(path, container)):
            raise VideoError(path, "its frames are shown mirrored, which decord cannot do; use the reader 'auto'")
        self._open()
        self._keys: list[int] = self._reader.get_key_indices()
        encoded = len(self._reader)
        if table is None:
            self._timestamps = _usable_times(self._reader.get_frame_timestamp(range(encoded)))
            if self._timestamps is not None:
                self._timestamps = [time for time in self._timestamps if time >= 0]
            self._num_frames = encoded if self._timestamps is None else len(self._timestamps)
        elif encoded < len(table.times):
            raise VideoError(path, f"the file's index lists {len(table.times)} frames, but {encoded} can be found")
        else:
            self._timestamps = seconds(table.times, OpenVideo(path, container).tick_s)
            self._num_frames = len(table.times)
        if self._num_frames < 1:
            raise VideoError(path, "it has no frames")
        self._seek = (
            table is not None
            and self._num_frames == encoded == len(table.packets)
            and self._keys[:1] == [0]
            and table.closed_groups
            and _all_idr(OpenVideo(path, container))
        )
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
        """As `VideoReader.read`. Raises VideoError if a frame cannot be decoded, or if FFmpeg reports damage."""
        if self._seek:
            with suppress(_FramesLostError):
                frames, log = self._get_batch(indices)
                if not log.lines():
                    return frames
            # Either the file is damaged or the seek is wrong; decoding from the start shows which.
            self._seek = False
            self._open()
        return self._read_in_order(indices)

    def finish(self) -> None:
        """Read to the end: without seeks a lost frame shifts all later ones, and only the end shows it."""
        if not self._seek and self._next < self._num_frames:
            self._read_in_order([self._num_frames - 1])

    def _open(self) -> None:
        decord: Any = importlib.import_module("decord")
        threads = max(2, min(4, len(os.sched_getaffinity(0))))
        with witness() as log, open(self._path, "rb") as file:
            # By number: FFmpeg interprets names as patterns and protocols, and their endings as formats.
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
        """Read without a seek: decord seeks when it passes a key frame, so the frame before each is read too."""
        wanted = set(indices)
        stones = {key - 1 for key in self._keys if self._next < key <= indices[-1]}
        steps = sorted(wanted | stones)
        frames: list[np.ndarray] = []
        for start in range(0, len(steps), 8):
            part = steps[start : start + 8]
            batch, log = self._get_batch(part)
            if complaints := log.complaints():
                raise VideoError(self._path, summary(complaints))
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


def _is_mirrored(video: OpenVideo) -> bool:
    with suppress(av.FFmpegError):  # decord meets the same damage
        for packet in video.packets():
            for frame in video.codec.decode(packet):
                a, b, c, d = display_matrix(frame)
                return a * d - b * c < 0
    return False


def _all_idr(video: OpenVideo) -> bool:
    """Whether the first slice of each key frame is of an IDR picture; True for codecs without NAL units.

    H.264: NAL unit type 5 (types 1 to 5 are slices); HEVC: 19 and 20 (0 to 31 are slices).
    """
    codec, extra = video.codec.name, video.codec.extradata or b""
    if codec not in ("h264", "hevc"):
        return True
    at = 4 if codec == "h264" else 21
    width = (extra[at] & 3) + 1 if len(extra) > at else 4
    for packet in video.packets():
        data, position, kind = bytes(packet) if packet.is_keyframe else b"", 0, 5 if codec == "h264" else 19
        while position + width < len(data):
            header = data[position + width]
            kind = header & 31 if codec == "h264" else header >> 1 & 63
            if 1 <= kind <= 5 if codec == "h264" else kind <= 31:
                break
            position += width + int.from_bytes(data[position : position + width], "big")
        if kind not in ((5,) if codec == "h264" else (19, 20)):
            return False
    return True


def _usable_times(times_s: np.ndarray) -> list[float] | None:
    """Start times of frames, if plausible: ascending numbers within a week of 0."""
    starts = times_s[:, 0].astype(np.float64)
    if not np.all(np.isfinite(starts)) or np.abs(starts).max() > 604_800 or np.any(np.diff(starts) < 0):
        return None
    return [float(time) for time in starts]
