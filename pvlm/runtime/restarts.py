"""How often a lost actor is started again."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

import anyio

from pvlm.workers.backoff import Backoff

REST_S = 60.0
REST_MAX_S = 600.0
"""The first and the longest rest of an actor that was lost too often; each rest takes twice as long as the last."""


class Restarts:
    """``allowed`` restarts within ``window_s``. When they are used up the actor rests, and is then started once more.

    ``total``: all restarts so far. ``given_up``: from the first rest until the actor is back.
    """

    def __init__(self, allowed: int, window_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.total = 0
        self.given_up = False
        self._allowed = allowed
        self._window_s = window_s
        self._clock = clock
        self._recent: deque[float] = deque()
        self._rests = Backoff(REST_S, REST_MAX_S)
        self._rested_s: float | None = None
        """When the rest ends."""

    @property
    def spent(self) -> bool:
        """Have all restarts of the last ``window_s`` been used? Ask when the actor is lost: after a time without a
        restart the next rest is a short one.
        """
        while self._recent and self._clock() - self._recent[0] >= self._window_s:
            self._recent.popleft()
        if not self._recent:
            self._rests.reset()
        return len(self._recent) >= self._allowed

    @property
    def next_try_s(self) -> float | None:
        """Seconds until the rest ends; None: the actor does not rest."""
        return None if self._rested_s is None else max(0.0, self._rested_s - self._clock())

    def spend(self) -> None:
        """The actor is about to be started again."""
        self._recent.append(self._clock())

    def refund(self, losses: int = 1) -> None:
        """The cause of these last losses has gone: they do not count."""
        for _ in range(min(losses, len(self._recent))):
            self._recent.pop()

    async def rest(self) -> None:
        """Wait, twice as long as the last time."""
        pause_s = self._rests.take()
        self._rested_s = self._clock() + pause_s
        try:
            await anyio.sleep(pause_s)
        finally:
            self._rested_s = None
