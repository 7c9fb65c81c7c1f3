"""A video reader that uses PyAV, the Python binding of FFmpeg.

It reads all packets first, which gives the number of frames and their times. Frames are then known by their times, so a
seek that lands elsewhere is noticed. After a seek the first frame must be a key frame by its own bits, no frame may be
marked as corrupt, and FFmpeg must not complain. Otherwise the reader decodes the file from the start, where the same
complaint means damage.

In some containers a packet may hold no frame, or half of one. The number of packets is then an estimate, and the end of
the file shows the error (`FramesRecounted`). In an mp4 file it means damage.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

import av
import numpy as np
from av.video.frame import VideoFrame
from av.video.reformatter import Interpolation, VideoReformatter

from pvlm.errors import VideoError
from pvlm.video.complaints import Messages, summary
from pvlm.video.containers import recognize
from pvlm.video.orientation import display_matrix, upright
from pvlm.video.packets import OpenVideo, PacketTable, read_table, seconds
from pvlm.video.readers import FramesRecounted


class _DoubtError(Exception):
    """A seek may have given the wrong frames."""


class PyAVReader:
    """A `VideoReader` that uses PyAV. Raises VideoError if it cannot open the file."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._container = recognize(path)
        self._table = read_table(path, self._container)
        self._times = self._table.times
        self._may_recount = not self._container.indexed
        self._seek = self._table.seekable
        self._picture = _Picture()
        self._decoder = _Decoder(path, OpenVideo(path, self._container), self._table)

    @property
    def num_frames(self) -> int:
        return len(self._times)

    @property
    def fps(self) -> float | None:
        return self._decoder.video.fps

    @property
    def frame_size(self) -> tuple[int, int]:
        """Height and width, before the frames are turned."""
        return self._decoder.video.size

    @property
    def timestamps(self) -> Sequence[float] | None:
        return seconds(self._times, self._decoder.video.tick_s)

    def read(self, indices: Sequence[int]) -> np.ndarray:
        """As `VideoReader.read`. Raises VideoError if a frame cannot be decoded, or if FFmpeg reports damage."""
        if self._seek:
            try:
                with Messages() as messages:
                    frames = [self._rgb(frame) for frame in self._sought(indices)]
                if not messages.complaints():
                    return np.stack(frames)
            except (_DoubtError, av.FFmpegError):
                pass
            self._seek = False  # either the file is damaged or the seek is wrong; the start shows which
            self._restart()
        return np.stack(self._in_order(indices))

    def finish(self) -> None:
        """Read to the end: without seeks a lost frame shifts all later ones, and only the end shows it."""
        if not self._seek:
            self._in_order([self.num_frames])

    def _restart(self) -> None:
        self._decoder.video.settle()  # its messages say nothing of what is decoded from now on
        self._decoder = _Decoder(self._path, OpenVideo(self._path, self._container), self._table)

    def _sought(self, indices: Sequence[int]) -> Iterator[VideoFrame]:
        """The frames with the times of ``indices``. Raises _DoubtError if one of them does not come."""
        for index in indices:
            time = self._times[index]
            assert time is not None
            key = self._table.key_before(time)
            jumped = key > self._decoder.place
            if jumped and not self._decoder.jump(key):
                raise _DoubtError
            for frame in self._decoder.frames:
                if (jumped and not frame.key_frame) or frame.is_corrupt or frame.pts is None or frame.pts > time:
                    raise _DoubtError
                jumped = False
                if frame.pts == time:
                    yield frame
                    break
            else:
                raise _DoubtError

    def _in_order(self, indices: Sequence[int]) -> list[np.ndarray]:
        """Frames by their number; the number after the last one reads to the end."""
        wanted, found, last = set(indices), [], indices[-1]
        decoder = self._decoder
        with Messages() as messages:
            while decoder.shown <= last and (frame := decoder.next_frame(messages)) is not None:
                number = decoder.shown - 1
                if number >= self.num_frames or self._times[number] not in (None, frame.pts):
                    self._recount()
                if number in wanted:
                    found.append(self._rgb(frame))
            _check(self._path, messages)
        if decoder.shown < min(last + 1, self.num_frames):
            self._recount()
        return found

    def _recount(self) -> None:
        """Count frames by decoding all, and raise FramesRecounted; or VideoError where the number was certain."""
        if not self._may_recount:
            raise VideoError(self._path, "it is damaged: some of its frames cannot be decoded")
        self._may_recount = False
        self._restart()
        times = []
        with Messages() as messages:
            while (frame := self._decoder.next_frame(messages)) is not None:
                times.append(frame.pts)
            _check(self._path, messages)
        if not times:
            raise VideoError(self._path, "none of its frames can be decoded")
        self._times = times
        self._restart()
        raise FramesRecounted

    def _rgb(self, frame: VideoFrame) -> np.ndarray:
        return self._picture.rgb(frame, self._decoder.video.size)


class _Decoder:
    """A decoder from the start of a file, or from a key frame.

    ``place``: place of the packet that is decoded next; ``shown``: number of frames that came, unless it jumped.
    """

    def __init__(self, path: str, video: OpenVideo, table: PacketTable) -> None:
        video.codec.thread_type = "AUTO"
        video.codec.thread_count = max(1, min(4, len(os.sched_getaffinity(0))))
        self.video = video
        self.place = 0
        self.shown = 0
        self.frames = self._decoded()
        self._path = path
        self._table = table

    def next_frame(self, messages: Messages) -> VideoFrame | None:
        """The next frame in order; None at the end. Raises VideoError if it is damaged."""
        try:
            frame = next(self.frames, None)
        except av.FFmpegError as error:
            _check(self._path, messages)
            raise VideoError(self._path, f"it is damaged: frame {self.shown} cannot be decoded ({error})") from error
        if frame is not None and frame.is_corrupt:
            raise VideoError(self._path, f"it is damaged: a part of frame {self.shown} cannot be decoded")
        self.shown += frame is not None
        return frame

    def jump(self, key: int) -> bool:
        """Continue at a key frame, or at an earlier one. False if FFmpeg finds another place."""
        time = self._table.packets[key].time or 0
        self.video.seek(time)
        found = next(self.video.packets(), None)
        place = None if found is None else self._table.place(found.pts)
        if place is None or place > key or not self._table.packets[place].key:
            return False
        self.video.seek(time)
        self.place = place
        self.frames = self._decoded()
        return True

    def _decoded(self) -> Iterator[VideoFrame]:
        first: int | None = None
        for place, packet in enumerate(self.video.packets(), self.place):
            self.place = place + 1
            if place < self._table.lead:
                continue
            if first is None:
                first = packet.pts
            if first is None or packet.pts is None or packet.pts >= first:  # others need frames before the first
                yield from self.video.codec.decode(packet)
        yield from self.video.codec.decode(None)


class _Picture:
    """Frames as arrays, all turned as the first one."""

    def __init__(self) -> None:
        self._reformatter = VideoReformatter()
        self._matrix: tuple[int, ...] | None = None

    def rgb(self, frame: VideoFrame, size: tuple[int, int]) -> np.ndarray:
        """uint8 ``(H, W, 3)``, upright. A frame of another size is scaled, as FFmpeg does."""
        if self._matrix is None:
            self._matrix = display_matrix(frame)
        height, width = size
        converted = self._reformatter.reformat(
            frame, width, height, "rgb24", interpolation=Interpolation.BICUBIC, threads=1
        )
        return upright(converted.to_ndarray(), self._matrix)


def _check(path: str, messages: Messages) -> None:
    if complaints := messages.complaints():
        raise VideoError(path, summary(complaints))
