"""Packets of a video stream, without decoding: opening a file safely, and a table of its frames.

FFmpeg gets the format's name and a file object. It has no way to open another file: the callback that would do it
refuses, and no protocol is allowed.
"""

from __future__ import annotations

import bisect
import io
import itertools
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import av
from av.container import InputContainer
from av.stream import Discard, Disposition

from pvlm.errors import VideoError
from pvlm.video.complaints import Messages, summary
from pvlm.video.containers import Container

_BUFFER_BYTES = 1 << 18


@dataclass(frozen=True)
class Packet:
    """One packet. ``time``: presentation time in ticks of the stream. ``hidden``: an edit list hides its frame."""

    time: int | None
    key: bool
    hidden: bool


class PacketTable:
    """All packets of a stream in decoding order, and the times of the frames that they should give.

    ``lead``: packets before the first key frame, which cannot be decoded. ``times``: of the frames in order of
    presentation; None for a frame without a time.
    """

    def __init__(self, packets: list[Packet]) -> None:
        self.packets = packets
        self.lead = next((place for place, packet in enumerate(packets) if packet.key), 0)
        shown: list[int | None] = [packet.time for packet in packets[self.lead :] if not packet.hidden]
        known = [time for time in shown if time is not None]
        first = packets[self.lead].time
        if len(known) == len(shown) and first is not None:
            shown = [*sorted(time for time in known if time >= first)]  # earlier ones need frames before the first
        self.times = shown
        self._place_of = {packet.time: place for place, packet in enumerate(packets) if packet.time is not None}
        self._keys = [place for place, packet in enumerate(packets) if packet.key and packet.time is not None]

    @property
    def seekable(self) -> bool:
        """Whether `key_before` finds a key frame for each frame."""
        return self.lead == 0 and bool(self._keys) and len(self._place_of) == len(self.packets)

    def place(self, time: int | None) -> int | None:
        """The place of a packet in decoding order, by its time."""
        return None if time is None else self._place_of.get(time)

    def key_before(self, time: int) -> int:
        """The place of the last key frame from which a frame can be decoded: in front of it in both orders."""
        at = bisect.bisect_right(self._keys, self._place_of[time]) - 1
        while at > 0 and (self.packets[self._keys[at]].time or 0) > time:
            at -= 1
        return self._keys[max(at, 0)]

    @property
    def closed_groups(self) -> bool:
        """Whether each key frame is also a border in presentation order (a *closed* group of pictures), and no edit
        list hides frames.
        """
        times = [packet.time or 0 for packet in self.packets]
        later = list(itertools.accumulate(reversed(times), min))[::-1]
        earlier = [-math.inf, *itertools.accumulate(times, max)]
        borders = [place for place, packet in enumerate(self.packets) if packet.key]
        return (
            self.seekable
            and not any(packet.hidden for packet in self.packets)
            and all(later[place] == times[place] > earlier[place] for place in borders)
        )


def seconds(times: Sequence[int | None], tick_s: float) -> list[float] | None:
    """Times from the first one, in seconds; None unless they ascend and all are known."""
    known = [time for time in times if time is not None]
    if len(known) < len(times) or any(later < time for time, later in itertools.pairwise(known)):
        return None
    return [(time - known[0]) * tick_s for time in known]


class OpenVideo:
    """An open file: its first video stream that is no cover picture.

    ``size``: height and width of its frames. ``tick_s``: seconds in a tick of its times. ``listed``: number of frames
    by the container's index. Raises VideoError if there is no such stream, or FFmpeg cannot open the file.
    """

    def __init__(self, path: str, container: Container) -> None:
        self._opened = _open(path, container)
        covers = Disposition.attached_pic
        stream = next((one for one in self._opened.streams.video if not one.disposition & covers), None)
        if stream is None:
            raise VideoError(path, "there is no video stream in it")
        if stream.codec_context is None or stream.time_base is None:
            raise VideoError(path, "its video has a codec that FFmpeg does not know")
        for other in self._opened.streams:
            if other is not stream:
                other.discard = Discard.all
        self._stream = stream
        self.codec = stream.codec_context
        self.size = self.codec.height, self.codec.width
        if 0 in self.size:
            raise VideoError(path, "the size of its frames is unknown: it is damaged, or has an unknown codec")
        self.tick_s = float(stream.time_base)
        rate = stream.average_rate or stream.guessed_rate
        self.fps = float(rate) if rate else None

    def settle(self) -> None:
        """Wait until none of the decoder's threads works. What they had in hand is lost."""
        self.codec.flush_buffers()

    def __del__(self) -> None:
        if hasattr(self, "codec"):
            # PyAV frees a decoder, which waits for its threads, with the GIL: a thread that has a message waits for it.
            self.settle()

    @property
    def listed(self) -> int:
        """Number of frames by the container's index."""
        return len(self._stream.index_entries)

    def packets(self) -> Iterator[Any]:
        """The packets from the current position; without the empty ones that PyAV appends."""
        return (packet for packet in self._opened.demux(self._stream) if packet.size or packet.dts is not None)

    def seek(self, time: int) -> None:
        """Go to a key frame at a time in ticks, or before it."""
        self._opened.seek(time, stream=self._stream)


def read_table(path: str, container: Container) -> PacketTable:
    """Read all packets of a file. Raises VideoError for a file that ends early, has a damaged index, or no frames."""
    found: list[Packet] = []
    with Messages() as messages:
        video = OpenVideo(path, container)
        try:
            for packet in video.packets():
                if packet.is_corrupt and container.indexed:
                    raise VideoError(path, f"the file was cut off, or is damaged: frame {len(found)} is not whole")
                found.append(Packet(packet.pts, packet.is_keyframe, packet.is_discard))
        except (av.FFmpegError, OSError) as error:
            raise VideoError(path, f"it is damaged after {len(found)} frames ({_reason(error)})") from error
        complaints = [line for line in messages.complaints() if line.startswith(container.demuxer)]
    if not found:
        raise VideoError(path, "it has no frames")
    if container.indexed and complaints:
        raise VideoError(path, summary(complaints))
    if container.indexed and len(found) != video.listed:
        raise VideoError(path, f"the file's index lists {video.listed} frames, but {len(found)} can be found")
    table = PacketTable(found)
    if not table.times:
        raise VideoError(path, "it has no frames")
    return table


def _open(path: str, container: Container) -> InputContainer:
    file: Any = _Part(path, container.offset)
    try:
        opened = av.open(
            file,
            format=container.demuxer,
            container_options={"protocol_whitelist": "file,pipe", "format_whitelist": container.demuxer},
            buffer_size=_BUFFER_BYTES,
            io_open=_refuse,
            metadata_errors="replace",
        )
    except (av.FFmpegError, OSError, ValueError) as error:
        raise VideoError(path, f"it looks like {container.name}, but is damaged ({_reason(error)})") from error
    assert isinstance(opened, InputContainer)
    return opened


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def _refuse(url: str, flags: int, options: dict[str, str]) -> Any:
    raise PermissionError(f"the video refers to another file, {url!r}, which is not opened")


class _Part(io.RawIOBase):
    """A file from an offset to its end."""

    def __init__(self, path: str, offset: int) -> None:
        self._fd = os.open(path, os.O_RDONLY)
        self._offset = offset
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        size = os.preadv(self._fd, [buffer], self._offset + self._position)
        self._position += size
        return size

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position}.get(whence, os.fstat(self._fd).st_size - self._offset)
        if start + offset < 0:
            raise ValueError(f"a seek to {start + offset}")
        self._position = start + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def close(self) -> None:
        if not self.closed:
            os.close(self._fd)
        super().close()
