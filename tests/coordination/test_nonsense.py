"""Whatever decodes, in any order, to a live actor and to a coordinator: it is not their end, nor other sessions'."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pvlm.actors.actor import PATIENCE_MAX_S, Actor
from pvlm.coordination.coordinator import Coordinator
from pvlm.coordination.events import (
    Cancelled,
    DraftBack,
    DraftGone,
    Emit,
    Event,
    Fail,
    TargetBack,
    TargetGivenUp,
    TargetGone,
    ToDraftActor,
    ToTargetActor,
)
from pvlm.coordination.modes import State
from pvlm.speculation.policy import FixedWindow, WindowPolicy
from pvlm.speculation.windows import AutoWindow
from pvlm.workers.factory import make_actor
from pvlm_backends.emulated import EmulatedBackend
from pvlm_protocols.backend import Backend, LoadOptions, Role
from pvlm_protocols.codec import decode_for_actor, decode_from_actor, encode
from pvlm_protocols.limits import MAX_STOPPED
from pvlm_protocols.messages import (
    Advance,
    DraftWindow,
    Failed,
    Message,
    Open,
    PruneMask,
    Pruning,
    Rollback,
    SetMode,
    SetWindow,
    Stop,
    ToActor,
    Verdict,
    Window,
)
from pvlm_protocols.turns import VideoFrames
from tests.coordination.harness import SCHEDULES, Mailbox, sampling
from tests.protocols.samples import FROM_ACTOR, TO_ACTOR
from tests.protocols.strategies import messages_of
from tests.support.openings import asking

ROLES: tuple[Role, ...] = ("target", "draft")
TOKENS = 12
VOCABULARY = 64
VIDEO_TOKENS = 16


def emulated(role: Role) -> Backend:
    model = {"pass_ms": 0, "video_tokens": VIDEO_TOKENS, "layers": 2, "vocab_size": VOCABULARY}
    return EmulatedBackend.load(LoadOptions(model=json.dumps(model), role=role))


BACKENDS = {role: emulated(role) for role in ROLES}


class StrictMailbox(Mailbox):
    """As a real one it does not take every number for a time, and what is posted must decode at the other end."""

    def take(self, timeout_s: float | None = None) -> Any:
        assert timeout_s is None or 0 <= timeout_s <= PATIENCE_MAX_S
        return super().take(timeout_s)

    def post(self, *messages: Any) -> None:
        super().post(*(decode_from_actor(encode(message)) for message in messages))


def opening(session: int, **changes: Any) -> Open:
    fields: dict[str, Any] = {
        "turns": asking("What happens?", VideoFrames(pixels=np.zeros((2, 2, 2, 3), np.uint8))),
        "sampling": sampling(max_tokens=TOKENS, vocab_limit=VOCABULARY),
        "pruning": Pruning(method="none"),
        "schedule": SCHEDULES["parallel"],
        "window": Window(gamma=4, wait=2, patience_ms=1e9),
    }
    return Open(session=session, **{**fields, **changes})


def mask(session: int, **changes: Any) -> PruneMask:
    fields = {"bits": b"", "video_tokens": VIDEO_TOKENS, "kept": VIDEO_TOKENS, "method": "none", "ratio": 0.0}
    return PruneMask(session=session, **{**fields, **changes})


def written(actor: Actor, box: Mailbox, session: int) -> list[int]:
    """What an actor writes in a session that is asked for properly."""
    box.outgoing.clear()
    alone = actor.role == "target"
    box.incoming += [opening(session, schedule=SCHEDULES["ar" if alone else "parallel"]), mask(session)]
    tokens: list[int] = []
    for _ in range(1000):
        actor.turn(0)
        while box.outgoing:
            match box.outgoing.popleft():
                case Verdict(session=number, tokens=more) if number == session:
                    tokens += more
                case DraftWindow(session=number, start=start, tokens=more) if number == session:
                    tokens += more
                    box.incoming.append(
                        Advance(session=session, epoch=0, length=start + len(more), window=Window(gamma=4))
                    )
                case Failed(session=number) as failed if number == session:
                    raise AssertionError(failed)
        if len(tokens) >= TOKENS:
            return tokens
    raise AssertionError(f"{len(tokens)} tokens after 1000 turns")


def in_session(message: Message, session: int) -> Message:
    return msgspec.structs.replace(message, session=session) if hasattr(message, "session") else message


numbers = st.integers(1, 3)
anything = st.builds(in_session, messages_of(tuple(kind for kind in TO_ACTOR if kind is not Stop)), numbers)
sensible = st.one_of(
    st.builds(opening, numbers, schedule=st.sampled_from(list(SCHEDULES.values()))),
    st.builds(mask, numbers),
    st.builds(SetMode, session=numbers, mode=st.sampled_from(["turns", "together", "alone"])),
)


@pytest.mark.parametrize("role", ROLES)
@settings(max_examples=100)
@given(said=st.lists(st.tuples(anything | sensible, st.integers(0, 4)), max_size=25))
def test_nothing_that_decodes_is_an_actors_end(role: Role, said: list[tuple[Message, int]]) -> None:
    """And a session that is opened afterwards gets its text."""
    box = StrictMailbox()
    actor = make_actor(role, BACKENDS[role], box)
    for message, turns in said:
        box.incoming.append(decode_for_actor(encode(message)))
        for _ in range(turns):
            actor.turn()
    for message in (m for m, _ in said if hasattr(m, "session")):
        actor._close(message.session)  # type: ignore[attr-defined]
    assert written(actor, box, 99) == EXPECTED


def test_the_text_of_both_models() -> None:
    for role in ROLES:
        box = StrictMailbox()
        assert written(make_actor(role, BACKENDS[role], box), box, 1) == EXPECTED


EXPECTED = [BACKENDS["target"]._text.token(position) for position in range(TOKENS)]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("role", "nonsense", "reason"),
    [
        ("draft", mask(1, bits=b"\xff", kept=8), "1 bytes cannot be a mask over 16 video tokens"),
        ("draft", mask(1, bits=b"\xff\xff", kept=8), "keeps 16 video tokens, and says that it keeps 8"),
        ("draft", mask(1, bits=b"\xff", kept=7, video_tokens=8), "is for 8 video tokens, but the draft has 16"),
        (
            "draft",
            Rollback(session=1, epoch=1, keep=9, tokens=(), window=Window(gamma=4)),
            "9 tokens are to be kept of 0",
        ),
        ("draft", Advance(session=1, epoch=0, length=7, window=Window(gamma=4)), "7 tokens are confirmed, but 0 were"),
        ("draft", opening(1, committed=(1,) * TOKENS), "an answer of 12 tokens cannot continue after 12"),
        ("target", opening(1, committed=(1,) * TOKENS), "an answer of 12 tokens cannot continue after 12"),
        ("target", opening(1, committed=(1, VOCABULARY)), f"ids below {VOCABULARY}"),
        ("target", opening(1, pruning=Pruning(method="magic", ratio=0.5)), "magic"),
        ("target", opening(1, pruning=Pruning(ratio=0.5, early_layer=99)), "early_layer is 99"),
        ("target", opening(1, sampling=sampling(max_tokens=2**17, vocab_limit=VOCABULARY, coupling="auto")), "auto"),
        ("target", DraftWindow(session=1, epoch=0, start=0, tokens=(VOCABULARY,) * 3), None),
        ("target", DraftWindow(session=1, epoch=2**63 - 1, start=0, tokens=(VOCABULARY,) * 3), None),
        ("target", SetWindow(session=1, window=Window(gamma=1, wait=64, patience_ms=1e9)), None),
        ("target", SetMode(session=7, mode="alone"), None),
    ],
)
def test_a_session_that_is_told_nonsense_fails_alone_and_says_why(
    role: Role, nonsense: ToActor, reason: str | None
) -> None:
    box = StrictMailbox()
    actor = make_actor(role, BACKENDS[role], box)
    box.incoming += [opening(1), nonsense] if role == "target" or not isinstance(nonsense, PruneMask) else [opening(1)]
    for _ in range(4):
        actor.turn()
    if isinstance(nonsense, PruneMask):
        box.incoming.append(nonsense)
    for _ in range(9):
        actor.turn()
    failed = [message for message in box.outgoing if isinstance(message, Failed)]
    assert (reason is None and not failed) or [message.session for message in failed] == [1]
    assert reason is None or reason in failed[0].message
    assert written(actor, box, 2) == EXPECTED


def test_an_error_with_a_text_beyond_all_limits_is_told_within_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its actor lives on; so does one whose error names a file that is no UTF-8."""
    box = StrictMailbox()
    actor = make_actor("target", BACKENDS["target"], box)
    for number, text in ((1, "x" * 2_000_000), (2, "no such file: \udcff")):

        def fail(*_: Any, text: str = text) -> None:
            raise RuntimeError(text)

        with monkeypatch.context() as patch:
            patch.setattr(BACKENDS["target"], "open", fail)
            box.incoming.append(opening(number))
            actor.turn()
    long, odd = (message for message in box.outgoing if isinstance(message, Failed))
    assert long.message == "x" * len(long.message)
    assert long.message
    assert odd.message == "no such file: \\udcff"
    assert written(actor, box, 3) == EXPECTED


def test_a_draft_that_is_stopped_again_and_again_tells_of_it_within_limits() -> None:
    box = StrictMailbox()
    actor = make_actor("draft", BACKENDS["draft"], box)
    box.incoming += [opening(2), opening(1), mask(1)]  # with another session about, it writes token by token
    for epoch in range(1, 2 * MAX_STOPPED):
        while not (session := actor._sessions.get(1)) or not session._work.written.tokens:  # type: ignore[attr-defined]
            actor.turn(0)
        box.incoming.append(Rollback(session=1, epoch=epoch, keep=0, tokens=(1,), window=Window(gamma=4)))
        actor.turn(0)
    for _ in range(4):
        actor.turn(0)
    window = next(message for message in box.outgoing if isinstance(message, DraftWindow))
    assert len(window.stopped) == MAX_STOPPED
    assert window.stopped[-1].epoch == 2 * MAX_STOPPED - 2


# ---- the coordinator ----------------------------------------------------------------------------------------------

away = st.sampled_from(
    [DraftGone("killed"), DraftBack(), TargetGone(), TargetBack(), TargetGone(), TargetBack(), TargetGivenUp("gone")]
)

heard = st.one_of(messages_of(FROM_ACTOR), messages_of((Verdict,)), messages_of((DraftWindow,)))
some_tokens = st.lists(st.sampled_from([0, 1, 2, 3, VOCABULARY - 1, VOCABULARY]), max_size=5).map(tuple)


@st.composite
def events(draw: st.DrawFn, coordinator: Coordinator) -> Any:
    """Anything that decodes, often as if it were about what the session is at."""
    if draw(st.integers(0, 7)) == 0:
        return draw(away)
    event = in_session(draw(heard), 1)
    if draw(st.booleans()):
        tokens = draw(some_tokens)
        match event:
            case Verdict():
                start = len(coordinator.committed)
                event = msgspec.structs.replace(event, epoch=coordinator.epoch, start=start, tokens=tokens)
                if draw(st.booleans()):
                    end = start + len(tokens) == TOKENS
                    finish = "stop" if 0 in tokens else "length" if end else None
                    accepted = draw(st.integers(0, len(tokens)))
                    event = msgspec.structs.replace(event, finish=finish, accepted=accepted)
            case DraftWindow():
                start = len(coordinator.text.line)
                event = msgspec.structs.replace(
                    event, epoch=coordinator.epoch, start=start, tokens=tokens, proposal_ids=None, proposal_probs=None
                )
    return decode_from_actor(encode(event))


@settings(max_examples=150)
@given(
    data=st.data(),
    schedule=st.sampled_from(list(SCHEDULES)),
    policy=st.sampled_from([AutoWindow, lambda: FixedWindow(4), lambda: FixedWindow(4, wait=2)]),
    count=st.integers(0, 30),
)
def test_whatever_actors_say_the_coordinator_goes_on_or_fails_with_a_reason(
    data: st.DataObject, schedule: str, policy: Callable[[], WindowPolicy], count: int
) -> None:
    """What it sends decodes, what it emits is of the vocabulary and no longer than it may be, and never taken back."""
    opened = opening(1, schedule=SCHEDULES[schedule])
    coordinator = Coordinator(opened, policy(), None if opened.schedule.mode == "alone" else opened)
    emitted: list[int] = []
    event: Event = Cancelled()
    commands = coordinator.start()
    for left in range(count, -1, -1):
        for command in commands:
            match command:
                case ToDraftActor(message) | ToTargetActor(message):
                    decode_for_actor(encode(message))
                case Emit(tokens):
                    emitted += tokens
                case Fail(message=reason):
                    assert reason or isinstance(event, Failed)
        assert emitted == coordinator.committed
        if coordinator.done or not left:
            break
        event = data.draw(events(coordinator))
        commands = coordinator.handle(event)
        coordinator.reconsider()
    assert all(0 <= token < VOCABULARY for token in emitted)
    assert len(emitted) <= TOKENS
    if coordinator.state is State.FINISHED:
        assert len(emitted) == TOKENS or emitted[-1] == 0
