"""For which tokens the draft prepares outcomes."""

from __future__ import annotations

import pytest

from pvlm.actors.draft import DraftActor
from pvlm_protocols.messages import Advance, DraftWindow, Open, PruneMask, Window
from tests.coordination.harness import PRUNING, SCHEDULES, Mailbox, sampling
from tests.support.openings import asking
from tests.support.toy import ForkingToyBackend


def drafting(box: Mailbox, window: Window) -> DraftActor:
    """A draft that has written all that it may before the first verdict."""
    actor = DraftActor(ForkingToyBackend(end_logit=-100), box)
    opening = Open(
        session=1,
        turns=asking(),
        sampling=sampling(max_tokens=48, end_token_ids=()),
        pruning=PRUNING,
        schedule=SCHEDULES["parallel"],
        window=window,
    )
    box.incoming += [opening, PruneMask(session=1, bits=b"", video_tokens=16, kept=16, method="none", ratio=0.0)]
    for _ in range(20):
        actor.turn(0)
    return actor


def places(actor: DraftActor) -> set[int]:
    """The positions for which branches are held."""
    return {branch.point for branch in actor._sessions[1]._preparation._all()}


def test_behind_a_window_that_was_accepted_whole_the_first_token_is_left_out() -> None:
    """The target settles it as it arrives; the token after the window has a branch instead."""
    box = Mailbox()
    window = Window(gamma=3, outcomes=(1, 1, 1))
    actor = drafting(box, window)
    first, second = [message for message in box.outgoing if isinstance(message, DraftWindow)]
    assert (first.start, second.start) == (0, 3)
    box.incoming.append(Advance(session=1, epoch=0, length=3, window=window))
    for _ in range(20):
        actor.turn(0)
    assert places(actor) == {4, 5, 6}


@pytest.mark.parametrize("gamma", [2, 3])
def test_every_window_has_a_branch_for_the_token_after_it(gamma: int) -> None:
    box = Mailbox()
    window = Window(gamma=gamma, outcomes=(1,) * gamma)
    actor = drafting(box, window)
    for length in range(gamma, 5 * gamma, gamma):
        box.incoming.append(Advance(session=1, epoch=0, length=length, window=window))
        for _ in range(20):
            actor.turn(0)
        assert max(places(actor)) == length + gamma
