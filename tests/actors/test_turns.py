"""Several sessions at one actor: whose turn it is."""

from __future__ import annotations

import random

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pvlm.actors.draft import DraftActor
from pvlm.actors.target import TargetActor
from pvlm_protocols.messages import (
    Advance,
    Close,
    DraftWindow,
    Failed,
    Open,
    PruneMask,
    Rollback,
    Verdict,
    Window,
)
from tests.coordination.harness import PRUNING, SCHEDULES, Mailbox, sampling
from tests.support.toy import ToyBackend

TOKENS = 40
NEVER_ENDING = {"sampling": sampling(max_tokens=TOKENS, end_token_ids=())}
WHOLE = ToyBackend().greedy(TOKENS, end_tokens=())


def opening(session: int, schedule: str = "parallel") -> Open:
    return Open(
        session=session,
        question="?",
        video=None,
        pruning=PRUNING,
        schedule=SCHEDULES[schedule],
        window=Window(gamma=4),
        **NEVER_ENDING,
    )


def mask(session: int) -> PruneMask:
    return PruneMask(session=session, bits=b"", video_tokens=16, kept=16, method="none", ratio=0.0)


def posted(box: Mailbox, kind: type) -> list:
    return [message for message in box.outgoing if isinstance(message, kind)]


@settings(max_examples=40, deadline=None)
@given(count=st.integers(2, 6), order=st.integers(0, 10_000))
def test_nobody_has_two_turns_while_another_waits_for_one(count, order):
    """Sessions that are equally urgent, opened and closed at any time."""
    rng = random.Random(order)
    box = Mailbox()
    actor = TargetActor(ToyBackend(), box)
    for session in range(1, count + 1):
        box.incoming.append(opening(session, "ar"))
        for _ in range(rng.randrange(4)):
            actor.turn(0)
    if rng.random() < 0.5:
        box.incoming.append(Close(session=rng.randint(1, count)))
    while not all(session._prefilled for session in actor._sessions.values()) or box.incoming:
        actor.turn(0)
    box.outgoing.clear()
    left = len(actor._sessions)
    for _ in range(left * 10):
        actor.turn(0)
    served = [verdict.session for verdict in posted(box, Verdict)]
    for begin in range(0, len(served), left):
        assert len(set(served[begin : begin + left])) == left


@pytest.mark.parametrize("drafting", [False, True])
def test_while_the_target_verifies_one_session_the_draft_writes_for_the_other(drafting):
    """The first has written all it may; the other goes on whatever the first waits for."""
    box = Mailbox()
    actor = DraftActor(ToyBackend(drafting=drafting), box)
    box.incoming.extend([opening(1), mask(1), opening(2), mask(2)])
    while actor._next_ready() is not None or box.incoming:
        actor.turn(0)
    assert [window.session for window in posted(box, DraftWindow)] == [1, 2, 1, 2]
    box.outgoing.clear()
    box.incoming.append(Advance(session=2, epoch=0, length=4, window=Window(gamma=4)))
    while actor._next_ready() is not None or box.incoming:
        actor.turn(0)
    assert [window.session for window in posted(box, DraftWindow)] == [2]


def test_who_is_waited_for_comes_before_who_writes_ahead():
    box = Mailbox()
    actor = DraftActor(ToyBackend(), box)
    box.incoming.extend([opening(1), mask(1), opening(2), mask(2)])
    while len(posted(box, DraftWindow)) < 2:  # one of each is with the target
        actor.turn(0)
    box.outgoing.clear()
    box.incoming.append(Rollback(session=2, epoch=1, keep=0, tokens=(WHOLE[0],), window=Window(gamma=4)))
    for _ in range(4):
        actor.turn(0)
    (window,) = posted(box, DraftWindow)
    assert (window.session, window.start) == (2, 1)


def test_a_session_that_cannot_be_opened_takes_nobody_with_it():
    box = Mailbox()
    actor = TargetActor(ToyBackend(), box)
    wrong = msgspec.structs.replace(opening(1), sampling=sampling(coupling="auto"))
    box.incoming.extend([opening(2, "ar"), wrong])
    for _ in range(6):
        actor.turn(0)
    (failed,) = posted(box, Failed)
    assert (failed.session, failed.error) == (1, "ValueError")
    assert {verdict.session for verdict in posted(box, Verdict)} == {2}


def test_a_step_alone_comes_behind_another_sessions_window():
    """Session 1 is rejected; its step alone waits until nobody has a window, and not longer."""
    box = Mailbox()
    actor = TargetActor(ToyBackend(), box)
    for session in (1, 2):
        box.incoming.append(opening(session))
    for _ in range(5):
        actor.turn(0)
    wrong = next(token for token in range(1, 12) if token != WHOLE[0])
    box.incoming.append(DraftWindow(session=1, epoch=0, start=0, tokens=(wrong,)))
    actor.turn(0)
    assert posted(box, Verdict)[-1].rejected
    box.outgoing.clear()
    for start in (0, 4):  # at the second of them session 1 has had no turn for longer
        box.incoming.append(DraftWindow(session=2, epoch=0, start=start, tokens=tuple(WHOLE[start : start + 4])))
        actor.turn(0)
    actor.turn(0)
    assert [verdict.session for verdict in posted(box, Verdict)] == [2, 2, 1]
