"""Messages in a stream of bytes: where one ends and the next begins. No I/O.

A message is a header, ``b"PVLF"``, one byte with the number of its frames, 8 bytes for the size of each and 4 bytes for
the CRC-32 of the header (little-endian), and then the frames, as `pvlm.transports.link` makes them.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from pvlm.transports.link import ConnectionDamaged
from pvlm_protocols.codec import MAX_ARRAY_BYTES, MAX_FRAMES, MAX_MESSAGE_BYTES, Buffer

_START = struct.Struct("<4sB")
_MARK = b"PVLF"
_LARGEST = (2 * MAX_MESSAGE_BYTES, *[MAX_ARRAY_BYTES] * (MAX_FRAMES - 1))
"""Bytes of each frame. The codec has a tighter limit for the first."""


def framed(frames: Sequence[Buffer]) -> list[Buffer]:
    """Return the buffers to write for a message. Only its first frame is copied."""
    sizes = [memoryview(frame).nbytes for frame in frames]
    header = _START.pack(_MARK, len(frames)) + struct.pack(f"<{len(frames)}Q", *sizes)
    return [header + struct.pack("<I", zlib.crc32(header)) + frames[0], *frames[1:]]


class _Header(NamedTuple):
    size: int
    frames: tuple[int, ...]


class FrameReader:
    """Takes bytes as they arrive and returns whole messages."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[list[bytes]]:
        """Yield the frames of each message that ``data`` completes.

        Raises ConnectionDamaged for bytes that are no message, and for a message beyond the limits. Where the next
        message begins is then unknown.
        """
        self._buffer += data
        while (header := self._header()) is not None and len(self._buffer) >= header.size + sum(header.frames):
            yield self._take(header)

    def _header(self) -> _Header | None:
        """Return the header of the first message, None while it is incomplete."""
        if not _MARK.startswith(self._buffer[: len(_MARK)]):
            raise ConnectionDamaged(f"not a framed message: it starts with {bytes(self._buffer[: _START.size])!r}")
        if len(self._buffer) < _START.size:
            return None
        count = self._buffer[_START.size - 1]
        if not 1 <= count <= MAX_FRAMES:
            raise ConnectionDamaged(f"a framed message has 1 to {MAX_FRAMES} frames, not {count}")
        end = _START.size + 8 * count
        if len(self._buffer) < end + 4:
            return None
        sizes = struct.unpack_from(f"<{count}Q", self._buffer, _START.size)
        if struct.unpack_from("<I", self._buffer, end) != (zlib.crc32(self._buffer[:end]),):
            raise ConnectionDamaged("the header of a framed message is damaged: its checksum differs")
        for size, largest in zip(sizes, _LARGEST, strict=False):
            if size > largest:
                raise ConnectionDamaged(f"a frame of {size} bytes exceeds the limit of {largest}")
        if sum(sizes[1:]) > MAX_ARRAY_BYTES:
            raise ConnectionDamaged(f"arrays of {sum(sizes[1:])} bytes exceed the limit of {MAX_ARRAY_BYTES}")
        return _Header(end + 4, sizes)

    def _take(self, header: _Header) -> list[bytes]:
        at = header.size
        frames = []
        with memoryview(self._buffer) as view:
            for size in header.frames:
                frames.append(bytes(view[at : at + size]))
                at += size
        del self._buffer[:at]
        return frames
