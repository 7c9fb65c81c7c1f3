"""Real sessions of both actors and a real coordinator, on toy models, under a scheduler that a test controls.

Messages travel in order on each of the four ways; everything else, who works and whose message arrives when, is up to
the ``choose`` function, so that a property test can try any interleaving. Where crashes are allowed, it is up to it too
when an actor dies, when that is noticed (what it had said may still arrive until then), and when there is another.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from pvlm.actors.actor import Actor
from pvlm.actors.draft import DraftActor
from pvlm.actors.target import TargetActor
from pvlm.coordination.coordinator import Coordinator
from pvlm.coordination.events import (
    DraftBack,
    DraftGone,
    Emit,
    Fail,
    TargetBack,
    TargetGone,
    ToDraftActor,
    ToTargetActor,
)
from pvlm.speculation.policy import FixedWindow, WindowPolicy
from pvlm.telemetry.reporter import AnswerReport
from pvlm_protocols.messages import Open, Pruning, Sampling, Schedule, Window
from tests.support.openings import asking
from tests.support.totals import Totals
from tests.support.toy import END_TOKEN, VOCABULARY, ToyBackend

Choose = Callable[[Sequence[str]], str]


class Mailbox:
    """What an actor reads and posts, held back until the scheduler delivers it."""

    dropped = 0

    def __init__(self) -> None:
        self.incoming: deque[Any] = deque()
        self.outgoing: deque[Any] = deque()
        self.late = 0
        """How often the actor looks in vain: what is there shall arrive only when it has begun to work."""

    def take(self, timeout_s: float | None = None) -> Any:
        if self.late:
            self.late -= 1
            return None
        return self.incoming.popleft() if self.incoming else None

    def post(self, *messages: Any) -> None:
        self.outgoing.extend(messages)

    def close(self) -> None:
        pass


SCHEDULES = {
    "ar": Schedule(mode="alone"),
    "sd": Schedule(mode="turns", overlap_prefill=False),
    "parallel": Schedule(),
    "no-prefill": Schedule(overlap_prefill=False),
    "no-decode": Schedule(mode="turns"),
}


def sampling(**changes: Any) -> Sampling:
    return Sampling(**{"max_tokens": 24, "vocab_limit": VOCABULARY, "end_token_ids": (END_TOKEN,), **changes})


SAMPLING = sampling()
PRUNING = Pruning(method="uv", ratio=0.5)


class Harness:
    """One session from `Open` to its end."""

    def __init__(
        self,
        *,
        schedule: str = "parallel",
        target: ToyBackend | None = None,
        draft: ToyBackend | None = None,
        policy: WindowPolicy | None = None,
        window: Window | None = None,
        session: int = 1,
        sampling: Sampling = SAMPLING,
        pruning: Pruning = PRUNING,
        crashes: int = 0,
        draft_away: str = "",
    ) -> None:
        """``crashes``: how many may happen; ``draft_away``: the session is opened without its draft."""
        self.boxes = {"target": Mailbox(), "draft": Mailbox()}
        self.actors: dict[str, Actor] = {
            "target": TargetActor(target or ToyBackend(), self.boxes["target"]),
            "draft": DraftActor(draft or ToyBackend(noise=1.0), self.boxes["draft"]),
        }
        for actor in self.actors.values():
            actor.look_every_s = 0.0
        self.emitted: list[int] = []
        self.failed: list[Fail] = []
        self.crashes = crashes
        self.crashed: dict[str, str] = {"draft": "revive"} if draft_away else {}
        """What is to happen next to an actor that is not there, by role."""
        opening = Open(
            session=session,
            turns=asking(),
            sampling=sampling,
            pruning=pruning,
            schedule=SCHEDULES[schedule],
            window=window or Window(gamma=4),
        )
        self.coordinator = Coordinator(
            opening, policy or FixedWindow(4), None if SCHEDULES[schedule].mode == "alone" else opening, draft_away
        )
        self.totals = Totals()
        self.report = AnswerReport(self.totals, time.perf_counter())
        self._carry_out(self.coordinator.start())

    def moves(self) -> list[str]:
        """What can happen next."""
        moves = []
        for role in ("target", "draft"):
            if self.boxes[role].outgoing:
                moves.append(f"hear {role}")
            if role in self.crashed:
                moves += [f"{self.crashed[role]} {role}"] if self.crashed[role] else []
                continue
            if self.crashes:
                moves.append(f"crash {role}")
            actor = self.actors[role]
            if self.boxes[role].incoming or actor._inbox or actor._next_ready() is not None:
                moves.append(f"run {role}")
            if self.boxes[role].incoming and actor._next_ready() is not None:
                moves += [f"interrupt {role}", f"catch {role}"]
        return moves

    def play(self, choose: Choose = lambda moves: moves[0], steps: int = 20_000) -> list[int]:
        """Until the session is over; returns the tokens. A stand-still fails."""
        for _ in range(steps):
            if self.coordinator.done:
                return self.emitted
            moves = self.moves()
            assert moves, f"everybody waits: {self.coordinator.__dict__}"
            self.make(choose(moves))
        raise AssertionError(f"no end after {steps} steps")

    def make(self, move: str) -> None:
        verb, role = move.split()
        match verb:
            case "hear":
                self.deliver(self.boxes[role].outgoing.popleft())
            case "run" | "interrupt" | "catch":  # what is there arrives at once, at the first look, at a later one
                self.boxes[role].late = {"run": 0, "interrupt": 1, "catch": 4}[verb]
                self._run(self.actors[role])
            case "crash":
                self.crashes -= 1
                self.crashed[role] = "notice"
            case "notice":
                self.crashed[role] = "revive"
                self._replace(role)
                self.deliver(TargetGone() if role == "target" else DraftGone("killed"))
            case "revive":
                del self.crashed[role]
                self._replace(role)
                self.deliver(TargetBack() if role == "target" else DraftBack())

    def _replace(self, role: str) -> None:
        """Another actor, and nothing of what was under way."""
        self.boxes[role] = Mailbox()
        self.actors[role] = type(self.actors[role])(self.actors[role].backend, self.boxes[role])
        self.actors[role].look_every_s = 0.0

    def lose_draft(self) -> None:
        """For good."""
        self._replace("draft")
        self.crashed["draft"] = ""
        self.deliver(DraftGone("killed"))

    def deliver(self, event: Any) -> None:
        commands = self.coordinator.handle(event)
        self._carry_out(commands)
        self.report.handled(commands)

    def _run(self, actor: Actor) -> None:
        """One turn of the actor's loop."""
        actor.turn(0)

    def _carry_out(self, commands: list[Any]) -> None:
        self.coordinator.reconsider()
        for command in commands:
            match command:
                case ToTargetActor(message):
                    self.boxes["target"].incoming.append(message)
                case ToDraftActor(message):
                    self.boxes["draft"].incoming.append(message)
                case Emit(tokens):
                    self.emitted.extend(tokens)
                case Fail():
                    self.failed.append(command)
