"""Messages in a stream of bytes: where one ends and the next begins. No I/O.

A message is a header, ``b"PVLF"``, one byte with the number of its frames, 8 bytes for the size of each and 4 for the
CRC-32 of all that (little-endian), and then the frames themselves, as `pvlm.transports.link` makes them.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from pvlm_protocols.codec import MAX_ARRAY_BYTES, MAX_FRAMES, MAX_MESSAGE_BYTES, Buffer, ProtocolError

_START = struct.Struct("<4sB")
_MARK = b"PVLF"
_LARGEST = (2 * MAX_MESSAGE_BYTES, *[MAX_ARRAY_BYTES] * (MAX_FRAMES - 1))
"""Bytes of each frame. The first is looked at more closely when it is decoded."""


def framed(frames: Sequence[Buffer]) -> list[Buffer]:
    """What to write for a message. Small messages are one buffer; the frames of large arrays are not copied."""
    sizes = [memoryview(frame).nbytes for frame in frames]
    header = _START.pack(_MARK, len(frames)) + struct.pack(f"<{len(frames)}Q", *sizes)
    return [header + struct.pack("<I", zlib.crc32(header)) + frames[0], *frames[1:]]


class _Header(NamedTuple):
    size: int
    frames: tuple[int, ...]


class FrameReader:
    """Takes bytes as they come and gives whole messages."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._lost = False
        """What is at the front is no message, and that has been said."""

    def feed(self, data: bytes) -> Iterator[list[bytes] | ProtocolError]:
        """The frames of each message that ``data`` completes.

        Bytes that are no message, or one that exceeds the limits, give one ProtocolError, and are skipped up to what
        looks like the start of the next.
        """
        self._buffer += data
        while True:
            try:
                header = self._header()
            except ProtocolError as error:
                if not self._lost:
                    self._lost = True
                    yield error
                self._skip()
                continue
            if header is None or len(self._buffer) < header.size + sum(header.frames):
                return
            self._lost = False
            yield self._take(header)

    def _header(self) -> _Header | None:
        """Of the message at the front, None while it is incomplete."""
        if not _MARK.startswith(self._buffer[: len(_MARK)]):
            raise ProtocolError(f"not a framed message: it starts with {bytes(self._buffer[: _START.size])!r}")
        if len(self._buffer) < _START.size:
            return None
        count = self._buffer[_START.size - 1]
        if not 1 <= count <= MAX_FRAMES:
            raise ProtocolError(f"a framed message has 1 to {MAX_FRAMES} frames, not {count}")
        end = _START.size + 8 * count
        if len(self._buffer) < end + 4:
            return None
        sizes = struct.unpack_from(f"<{count}Q", self._buffer, _START.size)
        if struct.unpack_from("<I", self._buffer, end) != (zlib.crc32(self._buffer[:end]),):
            raise ProtocolError("the header of a framed message is damaged: its checksum differs")
        for size, largest in zip(sizes, _LARGEST, strict=False):
            if size > largest:
                raise ProtocolError(f"a frame of {size} bytes exceeds the limit of {largest}")
        return _Header(end + 4, sizes)

    def _skip(self) -> None:
        """To the next byte that may begin a message."""
        at = self._buffer.find(_MARK[:1], 1)
        del self._buffer[: at if at > 0 else len(self._buffer)]

    def _take(self, header: _Header) -> list[bytes]:
        at = header.size
        frames = []
        with memoryview(self._buffer) as view:
            for size in header.frames:
                frames.append(bytes(view[at : at + size]))
                at += size
        del self._buffer[:at]
        return frames
