"""The sessions that an actor which is back is to hold again."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Set

from pvlm.coordination.events import Event
from pvlm.log import log
from pvlm.runtime.session import LiveSession
from pvlm_protocols.backend import Role


class Revival:
    """Opens sessions again one at a time, suspects last: those in whose work the actor was lost before.

    So the memory of one prefill is enough, and a session that the actor does not survive interrupts nobody who waits.
    """

    def __init__(self, role: Role, back: Callable[[bool], Event]) -> None:
        """``back``: makes the event that opens a session again, from whether it may share passes."""
        self.waiting: deque[LiveSession] = deque()
        self._role = role
        self._back = back
        self._opening: LiveSession | None = None

    def begin(self, sessions: Iterable[LiveSession], kept: Set[int]) -> None:
        """The actor is back; its cache still has the ``kept`` sessions, which need no prefill."""
        self.end()
        for session in sorted(sessions, key=self._suspicion):
            if session.id in kept:
                self._open(session)
            else:
                self.waiting.append(session)
        self.proceed()

    def proceed(self) -> None:
        """Open the next session, if the last one is open or has gone."""
        while self.waiting and (self._opening is None or self._role not in self._opening.prefilling):
            self._opening = self.waiting.popleft()
            self._open(self._opening)

    def _suspicion(self, session: LiveSession) -> tuple[int, bool]:
        return session.losses[self._role], self._role in session.suspected

    def end(self) -> None:
        """The actor is lost again."""
        self.waiting.clear()
        self._opening = None

    def _open(self, session: LiveSession) -> None:
        session.handle(self._back(self._role not in session.suspected))
        if self._role in session.holders:
            log.info("session_resumed", role=self._role, session=session.id)
