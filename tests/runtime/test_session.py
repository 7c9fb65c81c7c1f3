"""A session at work: events that come up while commands are executed, and an answer that a stop string ends."""

from __future__ import annotations

from typing import Any

import pytest

from pvlm.coordination.coordinator import Coordinator
from pvlm.coordination.events import Cancelled, Command, Emit, Finish, StopAfter, TargetBack, TargetGone
from pvlm.coordination.modes import State
from pvlm.runtime.session import LiveSession
from pvlm.speculation.policy import FixedWindow
from pvlm.telemetry.reporter import Reporter
from pvlm_protocols.messages import Close, Closed, DraftWindow, Open, PrefillDone, Verdict, Window
from tests.coordination.harness import PRUNING, SAMPLING, SCHEDULES
from tests.support.openings import asking


class Actor:
    """Keeps what is posted to it."""

    def __init__(self) -> None:
        self.posted: list[Any] = []

    def post(self, message: Any) -> None:
        self.posted.append(message)


class Reader:
    """Gets the commands, and ends the answer after ``stop_after`` tokens while one of them is executed."""

    def __init__(self, stop_after: int) -> None:
        self.stop_after = stop_after
        self.commands: list[Command] = []
        self.actors = {"target": Actor(), "draft": Actor()}
        opening = Open(
            session=1,
            turns=asking(),
            sampling=SAMPLING,
            pruning=PRUNING,
            schedule=SCHEDULES["parallel"],
            window=Window(gamma=4),
        )
        self.coordinator = Coordinator(opening, FixedWindow(4), opening)
        self.seen: list[str] = []
        """Who decoded at each reported change: the roles that hold the session, small where they prefill."""
        actors: Any = self.actors
        self.session = LiveSession(actors, self.coordinator, self.take, self.look, Reporter(), None, None)
        self.session.execute(self.coordinator.start())
        self.session.handle(PrefillDone(session=1, role="target", prompt_tokens=9, prefill_ms=1.0))

    def look(self) -> None:
        session = self.session
        held = [role[0] if role in session.prefilling else role[0].upper() for role in sorted(session.holders)]
        self.seen.append("".join(held) + "." * session.done.is_set())

    def take(self, command: Command) -> None:
        if isinstance(command, Emit):
            self.session.handle(StopAfter(self.stop_after))
            assert not self.coordinator.done, "it was handled before the commands of the verdict were out"
        self.commands.append(command)


@pytest.mark.parametrize("kept", [1, 2, 3])
def test_a_stop_string_ends_the_session_when_the_commands_of_the_verdict_are_out(kept: int) -> None:
    reader = Reader(kept)
    reader.session.handle(DraftWindow(session=1, epoch=0, start=0, tokens=(3, 4, 5, 6)))
    reader.session.handle(Verdict(session=1, epoch=0, start=0, tokens=(3, 4, 5, 6), accepted=4, window=4))
    assert reader.coordinator.state is State.FINISHED
    assert reader.coordinator.finish == "stop"
    assert reader.coordinator.committed == [3, 4, 5, 6][:kept]
    assert [command for command in reader.commands if isinstance(command, Emit | Finish)] == [
        Emit((3, 4, 5, 6), 4),
        Finish("stop"),
    ]
    assert all(actor.posted[-1] == Close(session=1) for actor in reader.actors.values())


def test_a_stop_string_in_the_last_tokens_of_an_answer_changes_nothing_at_the_actors() -> None:
    """The verdict has ended the session already."""
    reader = Reader(1)
    reader.take = lambda command: reader.session.handle(StopAfter(1))  # type: ignore[method-assign]
    reader.session._on_command = reader.take
    reader.session.handle(Verdict(session=1, epoch=0, start=0, tokens=(3, 0), accepted=0, finish="stop"))
    assert reader.coordinator.state is State.FINISHED
    assert all(actor.posted.count(Close(session=1)) == 1 for actor in reader.actors.values())


def test_every_change_of_who_decodes_is_reported() -> None:
    reader = Reader(1)
    assert reader.seen == ["t", "dt"]
    reader.session.receive("target", PrefillDone(session=1, role="target", prompt_tokens=9, prefill_ms=1.0))
    reader.session.receive("draft", PrefillDone(session=1, role="draft", prompt_tokens=9, prefill_ms=1.0))
    reader.session.freed_by("target")
    reader.session.handle(TargetGone())
    reader.session.handle(TargetBack(True))
    reader.session.receive("target", PrefillDone(session=1, role="target", prompt_tokens=9, prefill_ms=1.0))
    reader.session.handle(Cancelled())
    reader.session.receive("draft", Closed(session=1, role="draft"))
    assert reader.seen[2:] == ["dT", "DT", "D", "Dt", "DT", "DT.", "T."]
