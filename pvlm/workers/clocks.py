"""The clock of another host. Monotonic clocks start anywhere: a worker's times are converted to the engine's clock.

The offset is estimated by round trips (Cristian, Probabilistic Clock Synchronization, 1989): a worker that was asked at
s, answered at t by its own clock and was heard at r has t - (s + r) / 2 on its clock more than here, give or take
(r - s) / 2. Of all round trips the one with the smallest error counts, where an error grows with its age.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

import msgspec

from pvlm_protocols.messages import DraftWindow, FromActor, Opened, Pong, PrefillDone, Verdict

DRIFT = 1e-4
"""By how much two clocks may go apart, in seconds a second; crystals are ten times as good."""
MOST_ASKED = 64


class _Estimate(NamedTuple):
    offset_s: float
    error_s: float
    at_s: float


class HostClock:
    """The monotonic clock of a worker's host, as far as it is known here."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._asked: dict[int, float] = {}
        self._best: _Estimate | None = None

    @property
    def offset_s(self) -> float:
        """What the worker's clock shows more than the engine's; 0 before the first answer."""
        return 0.0 if self._best is None else self._best.offset_s

    @property
    def error_s(self) -> float:
        """How far off `offset_s` may be by now."""
        if self._best is None:
            return float("inf")
        return self._best.error_s + DRIFT * (self._clock() - self._best.at_s)

    def asked(self, nonce: int) -> None:
        """A `Ping` is being sent."""
        self._asked[nonce] = self._clock()
        while len(self._asked) > MOST_ASKED:  # for pings that were never answered
            del self._asked[next(iter(self._asked))]

    def answered(self, pong: Pong) -> None:
        """Its answer has come."""
        if (asked_s := self._asked.pop(pong.nonce, None)) is None:
            return
        now_s = self._clock()
        error_s = (0.5 + DRIFT) * (now_s - asked_s)
        if error_s <= self.error_s:
            self._best = _Estimate(pong.at_s - (asked_s + now_s) / 2, error_s, now_s)

    def here(self, message: FromActor) -> FromActor:
        """The message, which has just come, with its times on the engine's clock."""
        match message:
            case Opened() | PrefillDone() | Verdict():
                offset_s = self._offset_of(message.ended_s)
                return msgspec.structs.replace(message, ended_s=message.ended_s - offset_s)
            case DraftWindow():
                offset_s = self._offset_of(message.ended_s)
                stopped = tuple(msgspec.structs.replace(it, ended_s=it.ended_s - offset_s) for it in message.stopped)
                return msgspec.structs.replace(
                    message, began_s=message.began_s - offset_s, ended_s=message.ended_s - offset_s, stopped=stopped
                )
            case _:
                return message

    def _offset_of(self, ended_s: float) -> float:
        """No event ends after its report arrives."""
        return max(self.offset_s, ended_s - self._clock())
