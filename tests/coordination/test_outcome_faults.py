"""Prepared outcomes and what may go wrong meanwhile: cancelled answers, draft and target that die and come back.

It goes wrong in the middle of a pass, for only then do prepared windows wait at the target.
"""

from __future__ import annotations

import gc
import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from pvlm.actors.branches import Preparation
from pvlm.actors.draft import DraftSession
from pvlm.actors.target import TargetSession
from pvlm.coordination.events import Cancelled
from pvlm.speculation.policy import FixedWindow
from pvlm.workers.factory import load_backend
from pvlm_backends.raw.cache import KeyValueCache
from pvlm_backends.session import CachedSession
from pvlm_protocols.backend import Backend, LoadOptions, Role
from pvlm_protocols.messages import Pruning
from tests.coordination.harness import Harness, sampling
from tests.coordination.test_coordinator import any_order, nothing_is_left
from tests.coordination.test_outcomes import PLAN, outcome_session
from tests.support.pair import PAIR
from tests.support.toy import ForkingToyBackend, ToyBackend, ToySession

DRAFTS = pytest.mark.parametrize("draft", [ToyBackend, ForkingToyBackend])
SEEDS = 12


class Killed(BaseException):
    """Ends an actor in the middle of a pass."""


def draft_session(harness: Harness) -> DraftSession:
    session = harness.actors["draft"]._sessions[1]
    assert isinstance(session, DraftSession)
    return session


def branches_held(harness: Harness) -> bool:
    """Does the draft hold branches, planned, in work or sent?"""
    return 1 in harness.actors["draft"]._sessions and bool(list(draft_session(harness)._preparation._all()))


def branches_in_work(harness: Harness) -> bool:
    return any(branch.written.tokens for branch in draft_session(harness)._preparation.growing())


def windows_wait(harness: Harness) -> bool:
    session = harness.actors["target"]._sessions[1]
    assert isinstance(session, TargetSession)
    return session.held.prepared > 0


def in_a_pass(
    monkeypatch: pytest.MonkeyPatch,
    harness: Harness,
    role: Role,
    wanted: Callable[[Harness], bool],
    action: Callable[[], None],
    kind: type[Any] = ToySession,
) -> list[bool]:
    """Act once, in a role's pass in which the harness is as ``wanted``. Returns a list that is not empty after that.
    ``kind``: of the sessions.
    """
    extend = kind.extend
    acted: list[bool] = []

    def watched(session: Any, tokens: Sequence[int], **options: Any) -> torch.Tensor:
        model = harness.actors[role]._sessions[1].model if 1 in harness.actors[role]._sessions else None
        if not acted and model in (session, getattr(session, "_trunk", None)) and wanted(harness):
            acted.append(True)
            action()
        rows: torch.Tensor = extend(session, tokens, **options)
        return rows

    monkeypatch.setattr(kind, "extend", watched)
    return acted


def play(harness: Harness, rng: random.Random) -> None:
    """To the end, and until both actors have taken in what they were told."""
    while not harness.coordinator.done:
        harness.make(rng.choice(harness.moves()))
    for role, actor in harness.actors.items():
        while harness.boxes[role].incoming or actor._inbox:
            harness.make(f"run {role}")


@DRAFTS
def test_a_cancelled_answer_leaves_no_branch_and_no_window(
    draft: type[ToyBackend], monkeypatch: pytest.MonkeyPatch
) -> None:
    met = 0
    for seed in range(SEEDS):
        with monkeypatch.context() as patched:
            harness = outcome_session(draft, seed)

            def wanted(harness: Harness) -> bool:
                return windows_wait(harness) and branches_held(harness)

            preparations: list[Preparation] = []

            def cancel(harness: Harness = harness, preparations: list[Preparation] = preparations) -> None:
                preparations.append(draft_session(harness)._preparation)
                harness.deliver(Cancelled())

            acted = in_a_pass(patched, harness, "target", wanted, cancel)
            play(harness, random.Random(seed))
            assert nothing_is_left(harness)
            assert all(not actor._sessions for actor in harness.actors.values())
            assert not any(list(preparation._all()) for preparation in preparations)
            met += len(acted)
    assert met > SEEDS / 2


def bytes_held() -> int:
    """Of the rows of every cache of keys and values in this process."""
    gc.collect()
    return sum(cache.nbytes for cache in gc.get_objects() if type(cache) is KeyValueCache)


@pytest.mark.parametrize("backend", ["torch", "native"])
def test_a_cancelled_answer_frees_the_rows_of_both_models(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    roles: tuple[Role, ...] = ("target", "draft")
    models: dict[Role, Backend] = {
        role: load_backend(backend, LoadOptions(model=PAIR[role], role=role), lambda message: None).backend
        for role in roles
    }
    before = bytes_held()
    harness = Harness(
        target=models["target"],  # type: ignore[arg-type]
        draft=models["draft"],  # type: ignore[arg-type]
        policy=FixedWindow(3, 2, 1e9, PLAN),
        sampling=sampling(max_tokens=48, vocab_limit=models["draft"].info.vocab_size, end_token_ids=()),
        pruning=Pruning(),
    )
    held: list[int] = []

    def wanted(harness: Harness) -> bool:
        """Some branch has rows of its own."""
        branches = list(draft_session(harness)._preparation._all())
        return windows_wait(harness) and any(branch.session is not None for branch in branches)

    def cancel() -> None:
        held.append(bytes_held())
        harness.deliver(Cancelled())

    acted = in_a_pass(monkeypatch, harness, "target", wanted, cancel, CachedSession)
    play(harness, random.Random(1))
    assert acted
    assert held[0] > before
    assert bytes_held() == before
    for model in models.values():
        model.close()


@DRAFTS
@pytest.mark.parametrize(("role", "wanted"), [("draft", branches_in_work), ("target", windows_wait)])
def test_an_actor_that_dies_among_prepared_outcomes_and_comes_back_changes_nothing(
    draft: type[ToyBackend], role: Role, wanted: Callable[[Harness], bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    met = found_again = 0
    for seed in range(SEEDS):
        with monkeypatch.context() as patched:
            harness, rng = outcome_session(draft, seed), random.Random(seed)

            def kill() -> None:
                raise Killed

            in_a_pass(patched, harness, role, wanted, kill)
            try:
                play(harness, rng)
            except Killed:
                met += 1
            else:
                continue
        counts = harness.coordinator.counts
        known = counts.outcome_hits + counts.outcome_late_hits
        lost = harness.actors[role]
        harness.crashes = 1
        harness.make(f"crash {role}")
        harness.make(f"notice {role}")
        lost.release()  # its memory is gone with its process
        harness.make(f"revive {role}")
        assert harness.play(any_order(rng)) == ToyBackend(seed=seed, end_logit=-100).greedy(48, end_tokens=())
        assert nothing_is_left(harness)
        found_again += counts.outcome_hits + counts.outcome_late_hits - known
    assert met > SEEDS / 2
    assert found_again > 0
