"""The engine's contact with one running actor: what is asked, what is heard, and what was dropped on the way."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from typing import Literal

import anyio

from pvlm.telemetry.metrics import PREFIX_BYTES, PREFIX_EVICTIONS, PREFIXES
from pvlm.telemetry.reporter import Reporter
from pvlm.workers.launch import RunningActor
from pvlm_protocols.messages import FromActor, Ping, Pong, PrefixesKept


class Contact:
    """``heard``: how many messages have come."""

    def __init__(self, actor: RunningActor, post: Callable[[Ping], None], reporter: Reporter) -> None:
        """``post`` sends a message to this actor, as long as it runs."""
        self.actor = actor
        self.heard = 0
        self._post = post
        self._reporter = reporter
        self._nonces = count(1)
        self._asked: dict[int, tuple[anyio.Event, list[Pong]]] = {}
        self._dropped: dict[Literal["engine", "worker"], int] = {"engine": 0, "worker": 0}
        """Messages dropped at either end that have been reported."""

    def ask(self) -> None:
        """Send a `Ping`; nobody waits for the answer."""
        self._ask(next(self._nonces))

    def _ask(self, nonce: int) -> None:
        if self.actor.clock is not None:
            self.actor.clock.asked(nonce)
        self._post(Ping(nonce=nonce))

    async def answer(self, timeout_s: float) -> Pong | None:
        """Ask, and wait for the answer; None: there is none within ``timeout_s``, or the actor is lost."""
        nonce, answered, answers = next(self._nonces), anyio.Event(), list[Pong]()
        self._asked[nonce] = answered, answers
        self._ask(nonce)
        with anyio.move_on_after(timeout_s):
            await answered.wait()
        self._asked.pop(nonce, None)
        return answers[0] if answers else None

    def here(self, message: FromActor) -> FromActor:
        """Count a message, and return it with its times on this host's clock."""
        self.heard += 1
        return message if self.actor.clock is None else self.actor.clock.here(message)

    def answered(self, pong: Pong) -> None:
        if self.actor.clock is not None:
            self.actor.clock.answered(pong)
        self.report_dropped("engine", self.actor.channel.dropped)
        self.report_dropped("worker", pong.dropped)
        if (asked := self._asked.pop(pong.nonce, None)) is not None:
            answered, answers = asked
            answers.append(pong)
            answered.set()

    def report_dropped(self, end: Literal["engine", "worker"], dropped: int) -> None:
        """``dropped``: all that were dropped at an end so far."""
        if (more := dropped - self._dropped[end]) > 0:
            self._dropped[end] = dropped
            self._reporter.fault("message_dropped", role=self.actor.role, count=more, end=end)

    def keeps(self, kept: PrefixesKept) -> None:
        """The actor has reported what it keeps of prompts."""
        before, self.actor.kept = self.actor.kept, kept
        role = self.actor.role
        self._reporter.add(PREFIXES, kept.count - (before.count if before else 0), role=role)
        self._reporter.add(PREFIX_BYTES, kept.nbytes - (before.nbytes if before else 0), role=role)
        if kept.evicted:
            self._reporter.add(PREFIX_EVICTIONS, kept.evicted, role=role)

    def end(self) -> None:
        """The actor is lost or closed: nobody waits for it any longer."""
        self.keeps(PrefixesKept(role=self.actor.role, count=0, nbytes=0))
        self.report_dropped("engine", self.actor.channel.dropped)
        for answered, _ in self._asked.values():
            answered.set()
