"""A worker whose connection was lost continues its sessions over the next one, without another prefill."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pvlm.actors import actor as actor_module
from pvlm.actors.actor import Actor
from pvlm.actors.draft import DraftActor
from pvlm.actors.target import TargetActor
from pvlm.transports import ChannelClosed
from pvlm_protocols.messages import (
    Close,
    Closed,
    DraftWindow,
    Failed,
    FromActor,
    Open,
    Pong,
    PruneMask,
    Recall,
    Recalled,
    Resume,
    Stop,
    ToActor,
    Verdict,
    Window,
)
from tests.coordination.harness import PRUNING, SCHEDULES, sampling
from tests.support.openings import asking
from tests.support.toy import ToyBackend

TOKENS = 30
WHOLE = ToyBackend().greedy(TOKENS, end_tokens=())
ENGINE = 5


class Cut:
    """A mailbox whose connection is lost after so many reads, or when everything was read that is there."""

    dropped = 0

    def __init__(self, incoming: list[ToActor], reads: int = 10_000) -> None:
        self.incoming = incoming
        self.outgoing: list[FromActor] = []
        self._reads = reads

    def take(self, timeout_s: float | None = None) -> ToActor | None:
        self._reads -= 1
        if self._reads < 0 or (timeout_s != 0 and not self.incoming):
            raise ChannelClosed
        return self.incoming.pop(0) if self.incoming else None

    def post(self, *messages: FromActor) -> None:
        if self._reads < 0:
            raise ChannelClosed
        self.outgoing.extend(messages)

    def close(self) -> None: ...

    def posted(self, kind: type) -> list[Any]:
        return [message for message in self.outgoing if isinstance(message, kind)]


def opening(schedule: str = "ar", session: int = 1) -> Open:
    return Open(
        session=session, turns=asking(), pruning=PRUNING, schedule=SCHEDULES[schedule],
        window=Window(gamma=4), sampling=sampling(max_tokens=TOKENS, end_token_ids=()),
    )  # fmt: skip


MASK = PruneMask(session=1, bits=b"", video_tokens=16, kept=16, method="none", ratio=0.0)


def over(actor: Actor, box: Cut) -> Cut:
    """Serve over a connection until it is lost."""
    actor.mailbox = box
    actor.look_every_s = 0.0
    actor.serve()
    return box


def committed_of(box: Cut) -> list[int]:
    tokens: list[int] = []
    for verdict in box.posted(Verdict):
        tokens += verdict.tokens
    return tokens


@settings(max_examples=60, deadline=None)
@given(reads=st.integers(1, 120), heard=st.floats(0, 1))
def test_a_target_goes_on_from_what_the_engine_has_heard(reads: int, heard: float) -> None:
    """Wherever the connection was lost, also in the middle of a pass, and whatever was lost on its way."""
    backend = ToyBackend()
    actor = TargetActor(backend, Cut([]))
    first = over(actor, Cut([opening()], reads))
    tokens = committed_of(first)[: max(1, round(heard * TOKENS))]
    second = over(actor, Cut([Recall(engine=0)], 8))
    (recalled,) = second.posted(Recalled)
    if not recalled.sessions or not tokens or len(tokens) == TOKENS:
        return
    resume = Resume(session=1, committed=tuple(tokens), epoch=7, window=Window(gamma=4))
    third = over(actor, Cut([Recall(engine=0), resume]))
    assert tokens + committed_of(third) == WHOLE
    assert {verdict.epoch for verdict in third.posted(Verdict)} == {7}
    assert sum(call.startswith("prefill") for call in backend.calls) == 1
    actor.release()
    assert backend.open_sessions == 0


@settings(max_examples=60, deadline=None)
@given(reads=st.integers(20, 120), kept=st.integers(1, TOKENS - 1), drafting=st.booleans())
def test_a_draft_goes_on_behind_whatever_is_committed(reads: int, kept: int, drafting: bool) -> None:
    """More than it has written, or less, or other tokens: a target may have gone on alone meanwhile."""
    backend = ToyBackend(noise=0.5, drafting=drafting)
    actor = DraftActor(backend, Cut([]))
    over(actor, Cut([opening("parallel"), MASK], reads))
    committed = WHOLE[:kept]
    resume = Resume(session=1, committed=tuple(committed), epoch=7, window=Window(gamma=4))
    box = over(actor, Cut([Recall(engine=0), resume]))
    assert box.posted(Recalled)[0].sessions == (1,)
    window = box.posted(DraftWindow)[0]
    assert (window.epoch, window.start, window.stopped) == (7, kept, ())
    expected: list[int] = []
    while len(expected) < len(window.tokens):
        expected.append(int(backend.row(committed + expected).argmax()))
    assert list(window.tokens) == expected
    assert sum(call.startswith("prefill") for call in backend.calls) == 1


def test_what_is_not_prefilled_is_not_kept() -> None:
    actor = DraftActor(ToyBackend(), Cut([]))
    over(actor, Cut([opening("parallel")]))  # no mask has come
    box = over(actor, Cut([Recall(engine=0), Resume(session=1, committed=(1,), epoch=2, window=Window(gamma=4))]))
    assert box.posted(Recalled)[0].sessions == ()
    (failed,) = box.posted(Failed)
    assert "session 1 cannot be resumed" in failed.message


@pytest.mark.parametrize("committed", [(), (1,) * TOKENS])
def test_an_answer_without_tokens_or_at_its_end_is_not_resumed(committed: tuple[int, ...]) -> None:
    backend, actor = held(ENGINE)
    resume = Resume(session=1, committed=committed, epoch=2, window=Window(gamma=4))
    (failed,) = over(actor, Cut([Recall(engine=ENGINE), resume])).posted(Failed)
    assert failed.message == f"an answer of {TOKENS} tokens cannot be resumed after {len(committed)}"
    assert backend.open_sessions == 0


def held(engine: int = 0) -> tuple[ToyBackend, TargetActor]:
    backend = ToyBackend()
    actor = TargetActor(backend, Cut([]))
    over(actor, Cut([Recall(engine=engine), opening()], 20))
    assert backend.open_sessions == 1
    return backend, actor


def test_another_engine_finds_no_session() -> None:
    backend, actor = held(ENGINE)
    box = over(actor, Cut([Recall(engine=ENGINE + 1)]))
    assert box.posted(Recalled)[0].sessions == ()
    assert backend.open_sessions == 0


def test_held_sessions_get_no_turn_and_can_be_closed() -> None:
    backend, actor = held(ENGINE)
    box = over(actor, Cut([Recall(engine=ENGINE)], 30))
    assert (box.posted(Recalled)[0].sessions, box.posted(Verdict)) == ((1,), [])
    assert backend.open_sessions == 1
    box = over(actor, Cut([Recall(engine=ENGINE), Close(session=1)]))
    assert box.posted(Closed) == [Closed(session=1, role="target")]
    assert backend.open_sessions == 0


@pytest.mark.parametrize("connected", [False, True])
def test_held_sessions_are_freed_after_a_while(connected: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(actor_module, "HOLD_S", 0.0)
    backend, actor = held()
    if connected:
        over(actor, Cut([]))
    else:
        actor.expire()
    assert backend.open_sessions == 0


def test_an_engine_that_is_closed_frees_everything() -> None:
    backend, actor = held(ENGINE)
    over(actor, Cut([Stop()]))
    assert backend.open_sessions == 0
    assert over(actor, Cut([Recall(engine=ENGINE)])).posted(Pong) == []
