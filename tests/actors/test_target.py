"""What the target does while a pass runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from pvlm.actors.session import ActorSession
from pvlm.actors.target import TargetActor
from pvlm_protocols.messages import DraftWindow, Failed, Open, Outcome, Parent, Prepared, Verdict, Window
from tests.coordination.harness import PRUNING, SCHEDULES, Mailbox, sampling
from tests.support.openings import asking
from tests.support.toy import VOCABULARY, SharingToyBackend, ToyBackend, ToySession

WHOLE = ToyBackend().greedy(24, end_tokens=())


def opening(session: int) -> Open:
    return Open(
        session=session,
        turns=asking(),
        sampling=sampling(max_tokens=24, end_token_ids=()),
        pruning=PRUNING,
        schedule=SCHEDULES["parallel"],
        window=Window(gamma=3, outcomes=(1, 1, 1, 1)),
    )


def prepared_target(box: Mailbox, sessions: int = 1) -> TargetActor:
    """A target that holds the logits of each session's first token and waits for windows."""
    actor = TargetActor(SharingToyBackend(), box)
    box.incoming.extend(opening(session) for session in range(1, sessions + 1))
    while box.incoming or not all(session.prepared for session in actor._sessions.values()):
        actor.turn(0)
    box.outgoing.clear()
    return actor


def wrong(token: int) -> int:
    return (token + 1) % VOCABULARY


def first_windows(session: int) -> list[DraftWindow | Prepared]:
    """A window whose second token is wrong, and what is prepared for that."""
    window = DraftWindow(session=session, id=1, epoch=0, start=0, tokens=(WHOLE[0], wrong(WHOLE[1]), 0))
    parent = Parent(window=1, offset=1, token=WHOLE[1], start=1)
    outcome = Outcome(id=2, parent=parent, rank=0, tokens=tuple(WHOLE[2:5]))
    return [window, Prepared(session=session, epoch=0, outcomes=(outcome,))]


def posted(box: Mailbox, kind: type) -> list[Any]:
    return [message for message in box.outgoing if isinstance(message, kind)]


def test_a_verdict_that_a_pass_follows_at_once_is_posted_when_that_has_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    """An accelerator computes while the verdict is encoded and sent."""
    box = Mailbox()
    actor = prepared_target(box)
    known: list[tuple[int, int]] = []
    extend = ToySession.extend

    def watched(
        session: ToySession, tokens: Sequence[int], *, on_progress: Callable[[], None] | None = None
    ) -> torch.Tensor:
        def begun() -> None:
            assert on_progress is not None
            before = len(posted(box, Verdict))
            on_progress()
            known.append((before, len(posted(box, Verdict))))

        return extend(session, tokens, on_progress=begun)

    monkeypatch.setattr(ToySession, "extend", watched)
    box.incoming.extend(first_windows(1))
    actor.turn(0)
    assert known == [(0, 0), (0, 1)]
    first, second = posted(box, Verdict)
    assert (first.tokens, first.rejected, first.branch) == (tuple(WHOLE[:2]), True, 2)
    assert (second.start, second.tokens[:3]) == (2, tuple(WHOLE[2:5]))


def test_where_a_backend_reports_no_progress_a_verdict_leaves_before_the_next_pass(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    box = Mailbox()
    actor = prepared_target(box)
    known: list[int] = []
    extend = ToySession.extend

    def silent(session: ToySession, tokens: Sequence[int], **_: Any) -> torch.Tensor:
        known.append(len(posted(box, Verdict)))
        return extend(session, tokens)

    monkeypatch.setattr(ToySession, "extend", silent)
    box.incoming.extend(first_windows(1))
    actor.turn(0)
    assert known == [0, 1]


def test_a_verdict_is_posted_although_the_pass_after_it_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    box = Mailbox()
    actor = prepared_target(box)
    extend = ToySession.extend

    def failing(session: ToySession, tokens: Sequence[int], **options: Any) -> torch.Tensor:
        if session.length:
            raise RuntimeError("no pass today")
        return extend(session, tokens, **options)

    monkeypatch.setattr(ToySession, "extend", failing)
    box.incoming.extend(first_windows(1))
    actor.turn(0)
    assert [type(message) for message in box.outgoing] == [Verdict, Failed]
    assert posted(box, Verdict)[0].tokens == tuple(WHOLE[:2])


@pytest.mark.parametrize("sessions", [1, 2])
def test_a_message_that_makes_no_sense_beside_a_pass_ends_its_session_alone(
    sessions: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    box = Mailbox()
    actor = prepared_target(box, sessions)
    actor.look_every_s = 0.0
    tick = actor.tick

    def twice(*working: ActorSession) -> None:
        """A pass of two layers: what is read after the first is taken in after the second."""
        tick(*working)
        tick(*working)

    monkeypatch.setattr(actor, "tick", twice)
    for session in range(1, sessions + 1):
        box.incoming.append(DraftWindow(session=session, id=1, epoch=0, start=0, tokens=tuple(WHOLE[:3])))
    while box.incoming:
        actor._read(0)
    outcome = Outcome(id=2, parent=Parent(window=1, offset=2, token=wrong(WHOLE[2]), start=2), rank=0, tokens=(1,))
    ids, probs = np.zeros((2, 1), np.int32), np.ones((2, 1), np.float32)  # of two tokens, but there is one
    box.incoming.append(Prepared(session=1, epoch=0, outcomes=(outcome,), proposal_ids=ids, proposal_probs=probs))
    box.late = 1  # it arrives in the middle of the pass
    for _ in range(4):
        actor.turn(0)
    assert [failed.session for failed in posted(box, Failed)] == [1]
    assert sorted(actor._sessions) == list(range(2, sessions + 1))
    for session in range(2, sessions + 1):
        tokens = [token for verdict in posted(box, Verdict) if verdict.session == session for token in verdict.tokens]
        assert tokens[:3] == WHOLE[:3]
