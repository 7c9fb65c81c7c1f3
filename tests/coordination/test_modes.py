"""The table of transitions: every event in every mode, and what holds after each."""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import product
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pvlm.coordination.coordinator import TRANSITIONS, Coordinator
from pvlm.coordination.events import (
    DROPPED,
    Cancelled,
    Command,
    DraftBack,
    DraftGone,
    Emit,
    Event,
    StopAfter,
    TargetBack,
    TargetGivenUp,
    TargetGone,
    ToDraftActor,
    ToTargetActor,
)
from pvlm.coordination.modes import Mode, State
from pvlm.speculation.policy import FixedWindow
from pvlm_protocols.messages import (
    Close,
    Closed,
    DraftWindow,
    Failed,
    Open,
    Opened,
    Outcome,
    Parent,
    PrefillDone,
    PrefillProgress,
    Prepared,
    PruneMask,
    SetMode,
    Verdict,
    Window,
)
from tests.coordination.harness import PRUNING, SAMPLING, SCHEDULES
from tests.protocols.samples import SAMPLES
from tests.support.openings import asking

EVENTS: tuple[type, ...] = get_args(Event)
PAIRED = {"sd": Mode.TURNS, "parallel": Mode.TOGETHER, "no-prefill": Mode.TOGETHER, "no-decode": Mode.TURNS}


class Policy(FixedWindow):
    """Says what the test wants: whether drafting pays, and whether the first window is waited for."""

    def __init__(self, patient: bool = True) -> None:
        super().__init__(4, wait=2)
        self.patient = patient
        self.pays = True

    def choice(self) -> Any:
        return super().choice()._replace(pays=self.pays)


class Watched:
    """A coordinator under watch: every command is checked against what the actors hold."""

    def __init__(self, schedule: str = "parallel", patient: bool = True) -> None:
        self.policy = Policy(patient)
        opening = Open(
            session=1,
            turns=asking(),
            sampling=SAMPLING,
            pruning=PRUNING,
            schedule=SCHEDULES[schedule],
            window=Window(gamma=4),
        )
        self.coordinator = Coordinator(opening, self.policy, None if schedule == "ar" else opening)
        self.open: set[str] = set()
        self.target_mode = ""
        self.obey(self.coordinator.start())

    def obey(self, commands: list[Command]) -> None:
        for command in commands:
            if not isinstance(command, ToTargetActor | ToDraftActor):
                continue
            role = "target" if isinstance(command, ToTargetActor) else "draft"
            match command.message:
                case Open(schedule=schedule):
                    assert role not in self.open, f"the {role} is opened twice"
                    self.open.add(role)
                    if role == "target":
                        self.target_mode = schedule.mode
                case message:
                    assert role in self.open, f"{message} to a {role} without a session"
                    if isinstance(message, Close):
                        self.open.discard(role)
                    if isinstance(message, SetMode):
                        assert message.mode != self.target_mode, "the target is told its mode twice"
                        self.target_mode = message.mode

    def handle(self, event: Event) -> list[Command]:
        """Handle it, and check what holds after every event."""
        coordinator = self.coordinator
        epoch, committed, done = coordinator.epoch, list(coordinator.committed), coordinator.done
        state = coordinator.state
        match event:
            case TargetGone() | Failed(role="target"):
                self.open.discard("target")
            case DraftGone() | Failed(role="draft"):
                self.open.discard("draft")
        commands = coordinator.handle(event)
        self.obey(commands)
        assert coordinator.epoch >= epoch
        if not isinstance(event, StopAfter):
            assert coordinator.committed[: len(committed)] == committed
            assert isinstance(event, Verdict) or coordinator.committed == committed
        else:
            assert coordinator.committed == committed[: event.tokens if not done else None]
        emitted = [token for command in commands if isinstance(command, Emit) for token in command.tokens]
        assert emitted == (coordinator.committed[len(committed) :] if isinstance(event, Verdict) else [])
        if done:
            assert (commands, coordinator.state) == ([], state)
        if coordinator.done:
            assert not self.open, f"the session is over, but the {self.open} holds it"
        elif "target" in self.open:
            assert self.target_mode == coordinator.mode.of_target
        return commands

    def event(self, kind: type, rng: random.Random) -> Event:
        """An event of a kind, which fits what the session is at, or is of an actor in another state."""
        coordinator = self.coordinator
        role = rng.choice(["target", "draft"])
        tokens = tuple(rng.choice([1, 1, 1, 2]) for _ in range(rng.randint(1, 3)))
        epoch = max(0, coordinator.epoch - rng.choice([0, 0, 0, 1]))
        match kind.__name__:
            case "Verdict":
                start = max(0, len(coordinator.committed) - rng.choice([0, 0, 0, 1]))
                tokens = tokens[: SAMPLING.max_tokens - start]
                rejected = rng.random() < 0.3
                finish = "length" if start + len(tokens) == SAMPLING.max_tokens else None
                return Verdict(
                    session=1, epoch=epoch, start=start, tokens=tokens, accepted=len(tokens) - rejected,
                    rejected=rejected, window=len(tokens), pass_tokens=1, own_tokens=1, pass_ms=1.0, finish=finish,
                    judged=rng.randint(0, 3), offset=rng.randint(0, 2), branch=rng.choice([0, 0, 4, 5]),
                )  # fmt: skip
            case "DraftWindow":
                start = max(0, len(coordinator.text.line) - rng.choice([0, 0, 0, 1]))
                name, parent = rng.randint(0, 3), rng.choice([0, coordinator.text.last])
                return DraftWindow(session=1, epoch=epoch, start=start, tokens=tokens, id=name, parent=parent)
            case "Prepared":
                return Prepared(session=1, epoch=epoch, outcomes=tuple(self.outcomes(rng, tokens)))
            case "Opened":
                return Opened(session=1, role=role, prompt_tokens=9, video_tokens=4, open_ms=1.0)
            case "PrefillProgress":
                return PrefillProgress(session=1, role=role, fraction=0.5)
            case "PrefillDone":
                return PrefillDone(session=1, role=role, prompt_tokens=9, prefill_ms=1.0)
            case "PruneMask":
                return PruneMask(session=1, bits=b"", video_tokens=4, kept=4, method="none", ratio=0.0)
            case "Failed":
                return Failed(session=1, role=role, error="PromptError", message="too long", traceback="")
            case "StopAfter":
                return StopAfter(rng.randint(1, max(1, len(coordinator.committed))))
            case "DraftGone":
                return DraftGone("killed")
            case "TargetGivenUp":
                return TargetGivenUp("killed")
            case "Closed":
                return Closed(session=1, role=role)
            case "Hello" | "Loading" | "Pong" | "Began" | "Recalled" | "Dying" | "NeedVideo" | "PrefixesKept":
                return next(message for message in SAMPLES if type(message) is kind)
            case _:
                return kind()

    def outcomes(self, rng: random.Random, tokens: tuple[int, ...]) -> Iterator[Outcome]:
        for name in (4, 5):
            window, offset = rng.randint(0, 3), rng.randint(0, 2)
            start = rng.randint(0, SAMPLING.max_tokens - 4)
            parent = Parent(window=window, offset=offset, token=rng.choice([1, 2]), start=start)
            yield Outcome(id=name, parent=parent, rank=0, tokens=tokens)


def in_mode(mode: Mode) -> Watched:
    """A session that decodes in a mode, reached by events alone; some tokens are committed."""
    watched = Watched("sd" if mode is Mode.TURNS else "parallel", patient=mode is not Mode.PROBING)
    watched.handle(PrefillDone(session=1, role="target", prompt_tokens=9, prefill_ms=1.0))
    watched.policy.pays = mode is not Mode.ALONE
    watched.handle(Verdict(session=1, epoch=0, start=0, tokens=(1, 1), accepted=0))
    assert (watched.coordinator.mode, watched.coordinator.state) == (mode, State.DECODING)
    return watched


def test_every_event_in_every_mode_is_in_the_table_or_dropped_for_a_reason() -> None:
    handled = set(TRANSITIONS)
    dropped = set(product(Mode, DROPPED))
    assert handled | dropped == set(product(Mode, EVENTS))
    assert not handled & dropped
    assert all(DROPPED.values())


@pytest.mark.parametrize(("mode", "kind"), list(product(Mode, EVENTS)), ids=lambda part: getattr(part, "name", None))
def test_what_holds_after_every_event_in_every_mode(mode: Mode, kind: type) -> None:
    for seed in range(20):
        rng = random.Random(seed)
        watched = in_mode(mode)
        watched.policy.pays = rng.random() < 0.5
        commands = watched.handle(watched.event(kind, rng))
        if kind in DROPPED:
            assert (commands, watched.coordinator.mode) == ([], mode)


@pytest.mark.parametrize("schedule", SCHEDULES)
@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 100_000), patient=st.booleans(), ends=st.booleans())
def test_what_holds_after_any_events(schedule: str, seed: int, patient: bool, ends: bool) -> None:
    rng = random.Random(seed)
    watched = Watched(schedule, patient)
    ending = {Failed, TargetGivenUp, StopAfter, Cancelled}
    often = [kind for kind in EVENTS if ends or kind not in ending]
    for _ in range(rng.randint(1, 60)):
        watched.policy.pays = rng.random() < 0.7
        watched.handle(watched.event(rng.choice([*often, *4 * [Verdict, DraftWindow]]), rng))


MOVES: list[tuple[Mode, bool, list[Event], Mode]] = [
    (Mode.TURNS, True, [Verdict(session=1, epoch=0, start=2, tokens=(1,), accepted=0)], Mode.TURNS),
    (Mode.TURNS, False, [Verdict(session=1, epoch=0, start=2, tokens=(1,), accepted=0)], Mode.ALONE),
    (Mode.TOGETHER, True, [Verdict(session=1, epoch=0, start=2, tokens=(1,), accepted=0)], Mode.TOGETHER),
    (Mode.TOGETHER, False, [Verdict(session=1, epoch=0, start=2, tokens=(1,), accepted=0)], Mode.ALONE),
    (Mode.TOGETHER, True, [DraftGone("killed")], Mode.ALONE),
    (Mode.TOGETHER, True, [DraftGone("killed"), DraftBack()], Mode.PROBING),
    (Mode.TOGETHER, True, [TargetGone(), TargetBack()], Mode.TOGETHER),
    (Mode.ALONE, False, [Verdict(session=1, epoch=0, start=2, tokens=(1,) * 15, accepted=0)], Mode.ALONE),
    (Mode.ALONE, False, [Verdict(session=1, epoch=0, start=2, tokens=(1,) * 16, accepted=0)], Mode.PROBING),
    (Mode.ALONE, True, [Verdict(session=1, epoch=0, start=2, tokens=(1,), accepted=1)], Mode.TOGETHER),
    (Mode.PROBING, True, [Verdict(session=1, epoch=0, start=2, tokens=(1,), accepted=0)], Mode.PROBING),
    (Mode.PROBING, True, [DraftWindow(session=1, epoch=0, start=0, tokens=(1, 1, 1))], Mode.TOGETHER),
    (Mode.PROBING, False, [DraftWindow(session=1, epoch=0, start=0, tokens=(1, 1, 1))], Mode.ALONE),
    (Mode.PROBING, True, [TargetGone(), DraftGone("killed"), TargetBack()], Mode.ALONE),
]


@pytest.mark.parametrize(("mode", "pays", "events", "after"), MOVES)
def test_the_modes_follow_the_table_of_the_documentation(
    mode: Mode, pays: bool, events: list[Event], after: Mode
) -> None:
    watched = in_mode(mode)
    watched.policy.pays = pays
    watched.coordinator.measurements.outdate()
    for event in events:
        watched.handle(event)
    assert watched.coordinator.mode is after


@pytest.mark.parametrize("schedule", [name for name in SCHEDULES if name != "ar"])
def test_a_draft_that_is_back_is_probed_and_then_works_as_before(schedule: str) -> None:
    watched = Watched(schedule)
    coordinator = watched.coordinator
    assert coordinator.mode is PAIRED[schedule]
    watched.handle(PrefillDone(session=1, role="target", prompt_tokens=9, prefill_ms=1.0))
    for event, mode in ((DraftGone("killed"), Mode.ALONE), (DraftBack(), Mode.PROBING)):
        watched.handle(event)
        assert coordinator.mode is mode
    watched.handle(DraftWindow(session=1, epoch=coordinator.epoch, start=0, tokens=(1, 1)))
    assert coordinator.mode is PAIRED[schedule]


@pytest.mark.parametrize("with_draft", [True, False])
def test_a_target_that_is_back_draws_in_an_epoch_that_the_lost_one_cannot_have_reached(with_draft: bool) -> None:
    """The lost target may have rejected a token and drawn further tokens in the next epoch, unheard."""
    watched = in_mode(Mode.TOGETHER)
    if not with_draft:
        watched.handle(DraftGone("killed"))
    epoch = watched.coordinator.epoch
    watched.handle(TargetGone())
    opening = next(
        command.message
        for command in watched.handle(TargetBack())
        if isinstance(command, ToTargetActor) and isinstance(command.message, Open)
    )
    assert opening.epoch > epoch + 1


def test_an_answer_that_a_stop_string_ended_stays_as_it_is() -> None:
    watched = in_mode(Mode.TOGETHER)
    watched.handle(StopAfter(1))
    assert (watched.coordinator.state, watched.coordinator.finish) == (State.FINISHED, "stop")
    assert watched.coordinator.committed == [1]
    for kind in EVENTS:
        watched.handle(watched.event(kind, random.Random(0)))
    assert watched.coordinator.committed == [1]
