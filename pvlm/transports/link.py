"""A connection that may lose, damage, repeat or swap messages, made into one that does not. No I/O.

Each end numbers what it sends and keeps it until the other end has acknowledged it. Every message carries its number,
the last number that was received in order, and a CRC-32 of it all. What is damaged or was there before is dropped and
counted; what comes before its turn waits, and what is missing in front of it is sent again (selective repeat). The last
message of a burst has none behind it that would show its loss, so an end that waits for an acknowledgement asks for it.

Frame 0 begins with a header, little-endian: ``b"PVLK"``, one byte for the kind, 8 bytes each for number and
acknowledgement, 4 for the CRC of these, of the frames' sizes without it, and of the frames.
"""

from __future__ import annotations

import struct
import time
import zlib
from collections import deque
from collections.abc import Callable, Sequence
from enum import IntEnum
from typing import NamedTuple

from pvlm_protocols.codec import Buffer, ProtocolError

ASK_AFTER_S = 0.25
"""How long a message may wait for its acknowledgement before that is asked for."""
ACKNOWLEDGE_EVERY = 64
"""Messages that are taken at most without saying so, where nothing else is said."""
MAX_EARLY = 1024
"""Messages that may wait for one before them."""

_HEADER = struct.Struct("<4sBQQI")
_MARK = b"PVLK"

Frames = Sequence[Buffer]


class Kind(IntEnum):
    """``MESSAGE``: number ``number``. ``ASK``: the last one sent was ``number``; is it there? ``HAVE``: what is behind
    the acknowledgement, up to ``number``, is not there.
    """

    MESSAGE = 1
    ASK = 2
    HAVE = 3


class Received(NamedTuple):
    """``messages``: the frames of those whose turn has come; ``answers``: what to send back now."""

    messages: list[list[Buffer]]
    answers: list[list[Buffer]]


class Link:
    """One end; see the module."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.dropped = 0
        """Messages that came again, or too far before their turn."""
        self.resent = 0
        self._clock = clock
        self._sent = 0
        self._unacknowledged: deque[tuple[int, Frames]] = deque()
        self._waits_since_s = 0.0
        self._received = 0
        self._early: dict[int, list[Buffer]] = {}
        self._acknowledged = 0
        """What the other end was last told."""
        self._gap_told: int | None = None
        """What had been received when the last gap was told of."""

    @property
    def unacknowledged(self) -> int:
        """Messages that were sent, and perhaps have not arrived."""
        return len(self._unacknowledged)

    def send(self, frames: Frames) -> list[Buffer]:
        """What to send for the next message. Its frames are kept, not copied, and must not change."""
        if not self._unacknowledged:
            self._waits_since_s = self._clock()
        self._sent += 1
        self._unacknowledged.append((self._sent, frames))
        return self._sealed(Kind.MESSAGE, self._sent, frames)

    def receive(self, frames: Frames) -> Received:
        """Take in what has come.

        Raises ProtocolError if it is damaged, or never was of this protocol: send `complaint` back then.
        """
        kind, number, acknowledged, rest = self._unsealed(frames)
        self._settle(acknowledged)
        match kind:
            case Kind.MESSAGE:
                return Received(*self._take(number, rest))
            case Kind.ASK:
                return Received([], [self._have(number)])
            case Kind.HAVE:
                return Received([], self._again(number))

    def complaint(self) -> list[Buffer]:
        """What to send back for something damaged: send what I do not have."""
        self._gap_told = self._received
        return self._have(self._received + 1)

    def question(self) -> list[Buffer] | None:
        """What to send now to learn whether everything has arrived, if it is time for that."""
        if self._unacknowledged and self._clock() - self._waits_since_s >= ASK_AFTER_S:
            self._waits_since_s = self._clock()
            return self._sealed(Kind.ASK, self._sent, (b"",))
        return None

    def question_in_s(self) -> float | None:
        """Seconds until `question` may have one; None while everything sent is acknowledged."""
        if not self._unacknowledged:
            return None
        return max(0.0, self._waits_since_s + ASK_AFTER_S - self._clock())

    # ---- both ways ------------------------------------------------------------------------------------------------

    def _take(self, number: int, frames: list[Buffer]) -> tuple[list[list[Buffer]], list[list[Buffer]]]:
        """As `Received`."""
        if number == self._received + 1:
            messages = [frames]
            self._received = number
            while self._early and (early := self._early.pop(self._received + 1, None)) is not None:
                messages.append(early)
                self._received += 1
            often = self._received - self._acknowledged >= ACKNOWLEDGE_EVERY
            return messages, [self._have(self._received)] if often else []
        if number <= self._received or number in self._early or number > self._received + MAX_EARLY:
            self.dropped += 1
            return [], []
        self._early[number] = frames
        if self._gap_told == self._received:  # once: those behind the missing one come early too
            return [], []
        self._gap_told = self._received
        return [], [self._have(number - 1)]

    def _settle(self, acknowledged: int) -> None:
        while self._unacknowledged and self._unacknowledged[0][0] <= acknowledged:
            self._unacknowledged.popleft()
            self._waits_since_s = self._clock()

    def _again(self, last: int) -> list[list[Buffer]]:
        """All up to ``last`` that is not acknowledged."""
        missing = [(number, frames) for number, frames in self._unacknowledged if number <= last]
        self.resent += len(missing)
        return [self._sealed(Kind.MESSAGE, number, frames) for number, frames in missing]

    def _have(self, number: int) -> list[Buffer]:
        return self._sealed(Kind.HAVE, number, (b"",))

    def _sealed(self, kind: Kind, number: int, frames: Frames) -> list[Buffer]:
        self._acknowledged = self._received
        header = _HEADER.pack(_MARK, kind, number, self._received, _checksum(kind, number, self._received, frames))
        return [header + frames[0], *frames[1:]]

    def _unsealed(self, frames: Frames) -> tuple[Kind, int, int, list[Buffer]]:
        head = memoryview(frames[0]) if frames else memoryview(b"")
        try:
            mark, kind, number, acknowledged, checksum = _HEADER.unpack_from(head)
            rest = [head[_HEADER.size :], *frames[1:]]
            if mark != _MARK:
                raise ProtocolError(f"not a message of a pvlm link: it starts with {bytes(head[:4])!r}")
            if checksum != _checksum(kind, number, acknowledged, rest):
                raise ProtocolError("damaged on its way: its checksum differs")
            if acknowledged > self._sent:
                raise ProtocolError(f"it acknowledges message {acknowledged}, but only {self._sent} were sent")
            return Kind(kind), number, acknowledged, rest
        except (struct.error, ValueError) as error:
            if isinstance(error, ProtocolError):
                raise
            raise ProtocolError(f"not a message of a pvlm link: {error}") from None


def _checksum(kind: int, number: int, acknowledged: int, frames: Frames) -> int:
    sizes = [memoryview(frame).nbytes for frame in frames]
    checksum = zlib.crc32(struct.pack(f"<BQQ{len(sizes)}Q", kind, number, acknowledged, *sizes))
    for frame in frames:
        checksum = zlib.crc32(frame, checksum)
    return checksum
