"""Numbers and checksums of the messages of one connection. No I/O.

A connection delivers every message once, in order and undamaged, or it is lost. Unix sockets and TCP keep that promise
while they stand; the link verifies it. Nothing is sent twice: `pvlm.runtime.supervisor` recovers from a lost
connection as it does from a lost worker.

Frame 0 begins with a header, little-endian: ``b"PVLK"``, 8 bytes for the number of the message (the first is 1) and 4
bytes for a CRC-32. The CRC covers the number, the size of each frame without the header, the CRC-32 of each further
frame, and frame 0.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from itertools import zip_longest

from pvlm_protocols.codec import Buffer

_HEADER = struct.Struct("<4sQI")
_MARK = b"PVLK"

Frames = Sequence[Buffer]


class ConnectionDamaged(Exception):
    """The received bytes differ from what the other end has sent; the connection is lost."""


class Link:
    """One end of a connection."""

    def __init__(self) -> None:
        self._sent = 0
        self._received = 0

    def send(self, frames: Frames, known: Sequence[int | None] = ()) -> list[Buffer]:
        """Return the frames of the next message with its header.

        ``known``: the CRC-32 of ``frames[1]`` and those after it, None where it is unknown; a large frame takes
        milliseconds.
        """
        self._sent += 1
        header = _HEADER.pack(_MARK, self._sent, _checksum(self._sent, frames, known))
        return [header + frames[0], *frames[1:]]

    def receive(self, frames: Frames) -> list[Buffer]:
        """Return the frames of a received message without its header.

        Raises ConnectionDamaged if the message is damaged, missing its predecessor, or repeated.
        """
        head = memoryview(frames[0]) if frames else memoryview(b"")
        if len(head) < _HEADER.size or head[: len(_MARK)] != _MARK:
            raise ConnectionDamaged(f"not a message of a pvlm link: it starts with {bytes(head[:4])!r}")
        _, number, checksum = _HEADER.unpack_from(head)
        message = [head[_HEADER.size :], *frames[1:]]
        if checksum != _checksum(number, message):
            raise ConnectionDamaged("a message was damaged on its way: its checksum differs")
        if number != self._received + 1:
            raise ConnectionDamaged(f"message {number} follows message {self._received}")
        self._received = number
        return message


def _checksum(number: int, frames: Frames, known: Sequence[int | None] = ()) -> int:
    sizes = [memoryview(frame).nbytes for frame in frames]
    arrays = [
        zlib.crc32(frame) if checksum is None else checksum
        for frame, checksum in zip_longest(frames[1:], known[: len(frames) - 1])
    ]
    described = struct.pack(f"<Q{len(sizes)}Q{len(arrays)}I", number, *sizes, *arrays)
    return zlib.crc32(frames[0], zlib.crc32(described))
