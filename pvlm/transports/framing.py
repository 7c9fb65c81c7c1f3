"""Messages in a stream of bytes: where one ends and the next begins. No I/O.

A message is a header, ``b"PVLF"``, one byte with the number of its frames and 8 bytes for the size of each
(little-endian), and then the frames themselves, as `pvlm_protocols.codec` makes them.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence

from pvlm_protocols.codec import MAX_ARRAY_BYTES, MAX_FRAMES, MAX_MESSAGE_BYTES, Buffer, ProtocolError

_START = struct.Struct("<4sB")
_MARK = b"PVLF"
_LARGEST = (2 * MAX_MESSAGE_BYTES, *[MAX_ARRAY_BYTES] * (MAX_FRAMES - 1))
"""Bytes of each frame. The first is looked at more closely when it is decoded."""


def framed(frames: Sequence[Buffer]) -> list[Buffer]:
    """What to write for a message. Small messages are one buffer; the frames of large arrays are not copied."""
    sizes = [memoryview(frame).nbytes for frame in frames]
    header = _START.pack(_MARK, len(frames)) + struct.pack(f"<{len(frames)}Q", *sizes)
    return [header + frames[0], *frames[1:]]


class FrameReader:
    """Takes bytes as they come and gives whole messages."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[list[bytes]]:
        """The frames of each message that ``data`` completes.

        Raises ProtocolError where a header should be and none is, or one that exceeds the limits: the sender is none of
        ours or out of step, and what follows cannot be told apart.
        """
        self._buffer += data
        while (size := self._size()) is not None and len(self._buffer) >= size:
            yield self._take()

    def _size(self) -> int | None:
        """Bytes of the message at the front, None while its header is incomplete."""
        if len(self._buffer) < _START.size:
            return None
        mark, count = _START.unpack_from(self._buffer)
        if mark != _MARK or not 1 <= count <= MAX_FRAMES:
            raise ProtocolError(f"not a framed message: it starts with {bytes(self._buffer[: _START.size])!r}")
        if len(self._buffer) < _START.size + 8 * count:
            return None
        sizes = self._sizes()
        for size, largest in zip(sizes, _LARGEST, strict=False):
            if size > largest:
                raise ProtocolError(f"a frame of {size} bytes exceeds the limit of {largest}")
        return _START.size + 8 * len(sizes) + sum(sizes)

    def _sizes(self) -> list[int]:
        return list(struct.unpack_from(f"<{self._buffer[_START.size - 1]}Q", self._buffer, _START.size))

    def _take(self) -> list[bytes]:
        sizes = self._sizes()
        at = _START.size + 8 * len(sizes)
        frames = []
        with memoryview(self._buffer) as view:
            for size in sizes:
                frames.append(bytes(view[at : at + size]))
                at += size
        del self._buffer[:at]
        return frames
