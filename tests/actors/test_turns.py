"""Several sessions at one actor: whose turn it is."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from itertools import accumulate, pairwise

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pvlm.actors.draft import DraftActor
from pvlm.actors.target import TargetActor
from pvlm_protocols.backend import Prompt, Session
from pvlm_protocols.messages import (
    Advance,
    Close,
    Closed,
    DraftWindow,
    Failed,
    Open,
    PruneMask,
    Rollback,
    Verdict,
    Window,
)
from tests.coordination.harness import PRUNING, SCHEDULES, Mailbox, sampling
from tests.support.openings import asking
from tests.support.toy import SharingToyBackend, ToyBackend

TOKENS = 40
NEVER_ENDING = {"sampling": sampling(max_tokens=TOKENS, end_token_ids=())}
WHOLE = ToyBackend().greedy(TOKENS, end_tokens=())


def opening(session: int, schedule: str = "parallel") -> Open:
    return Open(
        session=session,
        turns=asking(),
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
    while not all(session.prepared for session in actor._sessions.values()) or box.incoming:
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


def decoding(actor: TargetActor | DraftActor, box: Mailbox, sessions: int, schedule: str = "ar") -> None:
    """Open so many sessions, and wait until all are prepared."""
    box.incoming.extend(opening(session, schedule) for session in range(1, sessions + 1))
    if isinstance(actor, DraftActor):
        box.incoming.extend(mask(session) for session in range(1, sessions + 1))
    while box.incoming or not all(session.prepared for session in actor._sessions.values()):
        actor.turn(0)
    box.outgoing.clear()
    actor.backend.calls.clear()


def texts(box: Mailbox) -> dict[int, list[int]]:
    """What the verdicts commit, by session."""
    found: dict[int, list[int]] = {}
    for verdict in posted(box, Verdict):
        found.setdefault(verdict.session, []).extend(verdict.tokens)
    return found


def test_sessions_that_are_ready_share_a_pass():
    box = Mailbox()
    actor = TargetActor(SharingToyBackend(), box)
    box.incoming.extend(opening(session, "ar") for session in (1, 2, 3))
    while posted(box, Verdict)[-1:] == [] or actor._next_ready() is not None:
        actor.turn(0)
    assert texts(box) == {1: WHOLE, 2: WHOLE, 3: WHOLE}
    assert actor.backend.calls.count("shared 3") >= TOKENS - 10
    assert all(verdict.pass_tokens in (0, 1, 2, 3) for verdict in posted(box, Verdict))


def test_no_session_waits_for_another_that_is_not_ready():
    """Two take turns with a draft: the one whose window is there goes on alone."""
    box = Mailbox()
    actor = TargetActor(SharingToyBackend(), box)
    decoding(actor, box, 2, "no-decode")
    box.incoming.append(DraftWindow(session=2, epoch=0, start=0, tokens=tuple(WHOLE[:4])))
    actor.turn(0)
    assert texts(box) == {2: WHOLE[:5]}
    assert actor.backend.calls == ["extend 4"]


def test_windows_share_a_pass():
    box = Mailbox()
    actor = TargetActor(SharingToyBackend(), box)
    decoding(actor, box, 2, "no-decode")
    wrong = next(token for token in range(1, 12) if token != WHOLE[1])
    box.incoming.append(DraftWindow(session=1, epoch=0, start=0, tokens=(WHOLE[0], wrong, wrong)))
    box.incoming.append(DraftWindow(session=2, epoch=0, start=0, tokens=tuple(WHOLE[:4])))
    actor.turn(0)
    assert texts(box) == {1: WHOLE[:2], 2: WHOLE[:5]}
    assert [verdict.rejected for verdict in posted(box, Verdict)] == [True, False]
    assert "shared 2" in actor.backend.calls
    assert {verdict.pass_tokens for verdict in posted(box, Verdict)} == {7}


@pytest.mark.parametrize(("sessions", "windows"), [(1, [8]), (2, [4, 4])])
def test_while_others_have_turns_a_pass_is_over_one_window(sessions: int, windows: list[int]):
    """The next window counts only if this one is accepted whole, and would make the pass longer for all."""
    box = Mailbox()
    actor = TargetActor(SharingToyBackend(), box)
    decoding(actor, box, sessions, "parallel")
    for start in (0, 4):
        parent = 7 if start else 0
        tokens = tuple(WHOLE[start : start + 4])
        box.incoming.append(DraftWindow(session=1, id=7 + start, parent=parent, epoch=0, start=start, tokens=tokens))
    for reached, window in zip(accumulate(windows), windows, strict=True):
        actor.turn(0)
        verdict = posted(box, Verdict)[-1]
        assert (verdict.session, verdict.start + len(verdict.tokens), verdict.window) == (1, reached, window)


def test_draft_steps_are_shared():
    box = Mailbox()
    actor = DraftActor(SharingToyBackend(), box)
    decoding(actor, box, 3, "parallel")
    while actor._next_ready() is not None:
        actor.turn(0)
    written = posted(box, DraftWindow)
    assert sorted(window.session for window in written) == [1, 1, 2, 2, 3, 3]
    assert {window.tokens for window in written} == {tuple(WHOLE[:4]), tuple(WHOLE[4:8])}
    # The first token of each follows from its prompt; one whose prefill ends first begins before the others.
    assert actor.backend.calls.count("shared 3") >= 5


def test_a_prefill_lets_running_answers_go_on_between_its_pieces():
    box = Mailbox()
    actor = TargetActor(SharingToyBackend(), box)
    decoding(actor, box, 1)
    box.incoming.append(opening(2, "ar"))
    while not actor._sessions.get(2) or not actor._sessions[2].prepared:
        actor.turn(0)
    calls = actor.backend.calls
    pieces = [index for index, call in enumerate(calls) if call.startswith(("piece", "prefill"))]
    assert len(pieces) == 4
    for before, after in pairwise(pieces):
        assert calls[before + 1 : after] == ["extend 1"]


def test_a_running_answer_waits_for_one_piece_however_many_prefills_there_are():
    box = Mailbox()
    actor = TargetActor(SharingToyBackend(), box)
    decoding(actor, box, 1)
    box.incoming.extend(opening(session, "ar") for session in (2, 3, 4))
    while len(actor._sessions) < 4 or not all(session.prepared for session in actor._sessions.values()):
        actor.turn(0)
    calls = actor.backend.calls
    pieces = [index for index, call in enumerate(calls) if call.startswith(("piece", "prefill"))]
    assert len(pieces) == 12
    assert all(later - earlier > 1 for earlier, later in pairwise(pieces))


def test_a_shared_pass_goes_on_while_one_session_wants_it():
    """One of two is closed in the middle: the other keeps its tokens. Both are closed: the pass is left."""
    box = Mailbox()
    actor = TargetActor(SharingToyBackend(), box)
    actor.look_every_s = 0.0
    decoding(actor, box, 2)
    box.late = 1
    box.incoming.append(Close(session=1))
    actor.turn(0)
    assert texts(box)[2]
    while box.incoming or actor._inbox:
        actor.turn(0)
    assert list(actor._sessions) == [2]
    assert actor.backend.open_sessions == 1


def test_where_a_shared_pass_fails_each_session_has_its_own():
    box = Mailbox()
    backend = SharingToyBackend()
    actor = TargetActor(backend, box)
    decoding(actor, box, 2)
    backend.failing = True
    actor.turn(0)
    actor.turn(0)
    assert sorted(texts(box)) == [1, 2]
    assert not posted(box, Failed)


def test_one_full_cache_fails_one_session_of_a_shared_pass():
    box = Mailbox()
    backend = SharingToyBackend()
    actor = TargetActor(backend, box)
    decoding(actor, box, 2)
    full = actor._sessions[1].model
    assert full is not None
    full._capacity = full.length
    backend.failing = True  # as a backend fails that checks before it runs
    for _ in range(3):
        actor.turn(0)
    assert [failed.session for failed in posted(box, Failed)] == [1]
    assert texts(box)[2] == WHOLE[: len(texts(box)[2])]
    assert len(texts(box)[2]) >= 2


def test_who_may_not_share_has_passes_of_its_own():
    box = Mailbox()
    actor = TargetActor(SharingToyBackend(), box)
    alone = msgspec.structs.replace(opening(3, "ar"), shares=False)
    box.incoming.extend([opening(1, "ar"), opening(2, "ar"), alone])
    marked: list[tuple[int, ...]] = []
    for _ in range(60):
        actor.turn(0)
        marked.append(actor.mark.read())
    assert {verdict.pass_tokens for verdict in posted(box, Verdict) if verdict.session == 3} == {0, 1}
    assert "shared 2" in actor.backend.calls
    assert "shared 3" not in actor.backend.calls
    assert set(marked) == {()}


class SteppedToyBackend(ToyBackend):
    """Its vision tower takes eight steps. ``steps`` counts them; ``after_two`` is called after the second."""

    steps = 0

    def __init__(self, after_two: Callable[[], None]) -> None:
        super().__init__()
        self.after_two = after_two

    def open_in_steps(self, prompt: Prompt, capacity: int, on_progress: Callable[[], None]) -> Session:
        for _ in range(8):
            time.sleep(0.002)  # the mailbox is read once a millisecond
            on_progress()
            self.steps += 1
            if self.steps == 2:
                self.after_two()
        return self.open(prompt, capacity)


@pytest.mark.parametrize("kind", [DraftActor, TargetActor])
@pytest.mark.parametrize(("leaves", "steps"), [(1, 2), (9, 8)])
def test_a_session_that_is_closed_in_its_vision_tower_is_given_up_there(kind, leaves, steps):
    """And a session that is not closed is opened."""
    box = Mailbox()
    backend = SteppedToyBackend(lambda: box.incoming.append(Close(session=leaves)))
    box.incoming.append(opening(1))
    actor = kind(backend, box)
    actor.turn(0)
    assert (backend.steps, backend.open_sessions) == (steps, int(leaves != 1))
    actor.turn(0)
    assert [closed.session for closed in posted(box, Closed)] == [leaves]
