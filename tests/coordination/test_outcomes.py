"""Prepared outcomes: the target continues with a prepared window, and the text stays the target's."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from pvlm.actors.branches import Branch, Preparation, Written
from pvlm.actors.draft import DraftActor
from pvlm.actors.prepared import HeldWindows, Waiting
from pvlm.actors.target import TargetActor
from pvlm.coordination.text import Text
from pvlm.speculation.coupling import Drafted
from pvlm.speculation.policy import FixedWindow
from pvlm.speculation.sampling import normalised, processed
from pvlm_protocols.limits import MAX_OUTCOMES
from pvlm_protocols.messages import (
    Advance,
    DraftWindow,
    Open,
    Outcome,
    Parent,
    Prepared,
    PruneMask,
    Rollback,
    Schedule,
    Verdict,
    Window,
)
from tests.coordination.harness import PRUNING, SCHEDULES, Choose, Harness, Mailbox, sampling
from tests.coordination.test_coordinator import any_order, nothing_is_left, seeds
from tests.support.openings import asking
from tests.support.toy import VOCABULARY, ForkingToyBackend, ToyBackend, ToySession

PLAN = (2, 2, 2, 2)
ENDLESS = {"max_tokens": 48, "end_token_ids": ()}


def outcome_session(draft: type[ToyBackend], seed: int, **options: object) -> Harness:
    return Harness(
        target=ToyBackend(seed=seed, end_logit=-100),
        draft=draft(seed=seed, noise=0.7, end_logit=-100),
        policy=FixedWindow(3, 2, 1e9, PLAN),
        sampling=sampling(**{**ENDLESS, "seed": seed, **options}),
    )


def draft_first(moves: list[str]) -> str:
    """The target is slow: the draft has prepared everything when a verdict comes."""
    return min(moves, key=lambda move: ("run target" in move, "interrupt" in move, "catch" in move))


@pytest.mark.parametrize("draft", [ToyBackend, ForkingToyBackend])
def test_a_verdict_whose_outcome_is_prepared_starts_the_next_pass_without_a_message(draft: type[ToyBackend]) -> None:
    found: Counter[str] = Counter()
    for seed in range(4):
        harness = outcome_session(draft, seed)
        heard: list[object] = []
        while not harness.coordinator.done:
            before = len(harness.boxes["target"].outgoing)
            harness.make(draft_first(harness.moves()))
            heard += list(harness.boxes["draft"].incoming)
            verdicts = [sent for sent in list(harness.boxes["target"].outgoing)[before:] if isinstance(sent, Verdict)]
            for verdict, following in pairwise(verdicts):
                if verdict.branch:
                    assert following.judged == verdict.branch
            if verdicts and verdicts[-1].branch:  # a message ended the round
                session = harness.actors["target"]._sessions[1]
                assert session.ready()
                assert [waiting.window for waiting in session.held.queue][:1] == [verdicts[-1].branch]
        assert harness.emitted == ToyBackend(seed=seed, end_logit=-100).greedy(48, end_tokens=())
        counts = harness.coordinator.counts
        found.update(hits=counts.outcome_hits, rejected=counts.rejected_tokens, rollbacks=counts.rollbacks)
        named = {message.branch for message in heard if isinstance(message, Advance)} - {0}
        assert len(named) == counts.outcome_hits + counts.outcome_late_hits
    assert found["hits"] > found["rejected"] / 4
    assert found["rollbacks"] <= found["rejected"] - found["hits"]


def test_a_batch_prepares_in_the_passes_of_the_line() -> None:
    harness = outcome_session(ForkingToyBackend, 3)
    harness.play(draft_first)
    assert any(call.startswith("shared") for call in harness.actors["draft"].backend.calls)
    assert harness.coordinator.counts.prepared_windows > 10
    assert nothing_is_left(harness)


def test_a_prepared_window_that_arrives_after_its_verdict_is_a_late_hit() -> None:
    """The coordinator hears the draft at once, but the target reads nothing during a pass."""
    late = 0
    for seed in range(6):
        harness = outcome_session(ForkingToyBackend, seed)
        rng = random.Random(seed)
        harness.play(lambda moves: min(moves, key=lambda m: ("hear target" in m, "run target" in m, rng.random())))  # noqa: B023
        late += harness.coordinator.counts.outcome_late_hits
        assert harness.emitted == ToyBackend(seed=seed, end_logit=-100).greedy(48, end_tokens=())
        assert nothing_is_left(harness)
    assert late > 0


@pytest.mark.parametrize("draft", [ToyBackend, ForkingToyBackend])
@settings(max_examples=12, deadline=None)
@given(seed=seeds, order=seeds)
def test_the_seeded_text_is_that_of_the_target_alone(draft: type[ToyBackend], seed: int, order: int) -> None:
    options = {"temperature": 1.0, "coupling": "gumbel", "max_tokens": 24, "end_token_ids": ()}
    alone = Harness(
        schedule="ar", target=ToyBackend(seed=seed, end_logit=-100), sampling=sampling(**options, seed=seed)
    ).play()
    assert outcome_session(draft, seed, **options).play(any_order(random.Random(order))) == alone


@settings(max_examples=25, deadline=None)
@given(seed=seeds, order=seeds, coupling=st.sampled_from(["greedy", "speculative"]))
def test_messages_of_any_age_change_nothing(seed: int, order: int, coupling: str) -> None:
    """Windows, prepared windows, advances and rollbacks come twice, at any later time."""
    rng = random.Random(order)
    hot = {"temperature": 1.0, "coupling": coupling} if coupling != "greedy" else {}
    harness = outcome_session(ForkingToyBackend, seed, max_tokens=24, **hot)
    said: dict[str, list[object]] = {"target": [], "draft": []}
    for _ in range(5000):
        if harness.coordinator.done:
            break
        for role, kinds in (("target", DraftWindow | Prepared), ("draft", Rollback)):
            said[role] += [message for message in harness.boxes[role].incoming if isinstance(message, kinds)]
            if said[role] and rng.random() < 0.1:
                harness.boxes[role].incoming.append(rng.choice(said[role]))
        harness.make(rng.choice(harness.moves()))
    assert harness.coordinator.done
    assert len(harness.emitted) == 24
    if coupling == "greedy":
        assert harness.emitted == ToyBackend(seed=seed, end_logit=-100).greedy(24, end_tokens=())
    assert nothing_is_left(harness)


@settings(max_examples=40, deadline=None)
@given(seed=seeds, order=seeds, at=st.integers(0, 80), draft=st.sampled_from([ToyBackend, ForkingToyBackend]))
def test_a_draft_that_is_lost_among_its_branches_changes_nothing(
    seed: int, order: int, at: int, draft: type[ToyBackend]
) -> None:
    rng = random.Random(order)
    harness = outcome_session(draft, seed)
    for _ in range(at):
        if harness.coordinator.done:
            break
        harness.make(rng.choice(harness.moves()))
    harness.lose_draft()
    assert harness.play(any_order(rng)) == ToyBackend(seed=seed, end_logit=-100).greedy(48, end_tokens=())


def fit_of_two_tokens(answers: int) -> tuple[float, int]:
    """The p-value of the first two tokens' distribution, and the number of hits."""
    target, draft = ToyBackend(seed=5, end_logit=-100), ForkingToyBackend(seed=5, noise=1.5, end_logit=-100)
    options = sampling(temperature=1.0, coupling="speculative", max_tokens=4, end_token_ids=())
    found: Counter[tuple[int, ...]] = Counter()
    hits = 0
    for seed in range(answers):
        policy = FixedWindow(2, 1, 1e9, PLAN)
        drawn = sampling(temperature=1.0, coupling="speculative", max_tokens=4, end_token_ids=(), seed=seed)
        harness = Harness(
            target=target, draft=draft, policy=policy, window=Window(gamma=2, outcomes=PLAN), sampling=drawn
        )
        found[tuple(harness.play(draft_first)[:2])] += 1
        hits += harness.coordinator.counts.outcome_hits

    def probabilities(prefix: list[int]) -> list[float]:
        return normalised(processed(target.row(prefix).unsqueeze(0), options, options.vocab_limit)[0]).tolist()

    first = probabilities([])
    exact = {(a, b): first[a] * second for a in range(len(first)) for b, second in enumerate(probabilities([a]))}
    common = [pair for pair, probability in exact.items() if probability * answers >= 5]
    expected = [exact[pair] * answers for pair in common]
    observed = [found[pair] for pair in common]
    rest = answers - sum(observed), answers - sum(expected)
    return float(stats.chisquare([*observed, rest[0]], [*expected, rest[1]]).pvalue), hits


def test_the_distribution_is_the_targets_with_prepared_windows() -> None:
    fit, hits = fit_of_two_tokens(300)
    assert hits > 30
    assert fit > 1e-4


def test_a_rule_that_accepts_a_prepared_token_by_itself_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes a prepared window for the rejected position, whatever token the target has drawn."""
    rightly = HeldWindows.reject

    def wrongly(held: HeldWindows, rejected: Waiting, token: int) -> int:
        for place in held._prepared:
            if (place.window, place.offset) == (rejected.window, rejected.offset):
                held._committed[-1] = token = place.token
                break
        return rightly(held, rejected, token)

    monkeypatch.setattr(HeldWindows, "reject", wrongly)
    assert fit_of_two_tokens(300)[0] < 1e-6


# ---- nobody waits for a window that nobody has ---------------------------------------------------------------------


def at_any_speed(rng: random.Random) -> Choose:
    """Draft, target and each way have a speed of their own."""
    speeds: dict[str, float] = {}

    def choose(moves: Sequence[str]) -> str:
        return rng.choices(moves, [speeds.setdefault(move, rng.choice([0.02, 0.2, 1, 5])) for move in moves])[0]

    return choose


@settings(max_examples=25, deadline=None)
@given(
    seed=seeds,
    order=seeds,
    gamma=st.integers(1, 7),
    plan=st.sampled_from([(1,) * 9, (3, 2, 1, 1), (8,) * 9]),
    draft=st.sampled_from([ToyBackend, ForkingToyBackend]),
    end_logit=st.sampled_from([-100, -1, 1]),
)
def test_at_any_speed_the_answer_comes_to_its_end(
    seed: int, order: int, gamma: int, plan: tuple[int, ...], draft: type[ToyBackend], end_logit: float
) -> None:
    """Where the draft expects an early end its branches have different lengths."""
    rng = random.Random(order)
    harness = Harness(
        target=ToyBackend(seed=seed, end_logit=-100),
        draft=draft(seed=seed, noise=0.7, end_logit=end_logit),
        policy=FixedWindow(gamma, rng.randint(0, gamma), rng.choice([0.0, 1e9]), plan),
        sampling=sampling(max_tokens=32),
    )
    assert harness.play(at_any_speed(rng)) == ToyBackend(seed=seed, end_logit=-100).greedy(32)
    assert harness.coordinator.counts.draft_lost == ""
    assert nothing_is_left(harness)


def opening(session: int, schedule: Schedule = SCHEDULES["parallel"], **changes: object) -> Open:
    return Open(
        session=session,
        turns=asking(),
        sampling=sampling(max_tokens=48),
        pruning=PRUNING,
        schedule=schedule,
        window=Window(gamma=4, outcomes=(1,) * 5),
        **changes,
    )


def test_a_draft_whose_branches_are_complete_writes_on() -> None:
    """A verdict drops all branches that are not complete. The others wait for nothing any more."""
    tried = 0
    for seed in range(20):
        box = Mailbox()
        actor = DraftActor(ForkingToyBackend(seed=seed, end_logit=1.0), box)
        mask = PruneMask(session=1, bits=b"", video_tokens=16, kept=16, method="none", ratio=0.0)
        box.incoming += [opening(1), mask, opening(2)]  # with another session about it writes token by token
        for _ in range(60):
            actor.turn(0)
            session = actor._sessions[1]
            branches = session._preparation._branches
            complete = [branch.point for branch in branches if branch.complete]
            growing = [branch.point for branch in branches if not branch.complete]
            if complete and growing and max(growing) < max(complete) and not session._ended():
                tried += 1
                box.incoming.append(
                    Advance(session=1, epoch=0, length=max(complete), window=Window(gamma=4, outcomes=(1,) * 5))
                )
                box.outgoing.clear()
                for _ in range(20):
                    actor.turn(0)
                kinds = [type(message) for message in box.outgoing]
                assert kinds[:1] == [Prepared]
                assert DraftWindow in kinds or session._ended()
                break
    assert tried


@pytest.mark.parametrize(
    ("prepared", "wait", "goes_on"),
    [
        (True, 2, True),  # a token more than the branch has
        (False, 2, False),  # of no branch
        (True, 1, False),  # no more than the branch has
    ],
)
def test_a_rollback_ends_the_pass_in_work_unless_that_writes_what_follows(
    prepared: bool, wait: int, goes_on: bool
) -> None:
    box = Mailbox()
    backend = ForkingToyBackend(end_logit=-100)
    actor = DraftActor(backend, box)
    actor.look_every_s = 0.0
    mask = PruneMask(session=1, bits=b"", video_tokens=16, kept=16, method="none", ratio=0.0)
    box.incoming += [opening(1), mask, opening(2)]  # with another session about it writes token by token
    growing: list[Branch] = []
    while not growing:
        actor.turn(0)
        session = actor._sessions[1]
        growing = [branch for branch in session._preparation.growing() if branch.session is not None]
    branch = growing[0]
    assert len(branch.written.tokens) == 1
    others = set(range(VOCABULARY)) - {branch.parent.token for branch in growing}
    token = branch.parent.token if prepared else max(others)
    window = Window(gamma=4, wait=wait)
    rollback = Rollback(session=1, epoch=1, keep=branch.point, tokens=(token,), window=window)
    assert session.outdates(rollback)  # between two passes
    box.incoming.append(rollback)
    box.late = 1  # it arrives in the middle of the pass
    backend.calls.clear()
    actor.turn(0)
    assert len(branch.written.tokens) == 1 + goes_on
    assert ("extend 1" in backend.calls) is goes_on
    box.outgoing.clear()
    for _ in range(4):
        actor.turn(0)
    sent, *_ = (message for message in box.outgoing if isinstance(message, DraftWindow))
    assert (sent.epoch, sent.start) == (1, branch.point + 1)
    assert (len(sent.tokens), sent.adopted) == (wait, 1 + goes_on if prepared else 0)


@pytest.mark.parametrize("outcomes", [(), (1,) * 5])
def test_a_draft_writes_on_where_the_next_window_is_shorter_than_the_one_in_verification(
    outcomes: tuple[int, ...],
) -> None:
    box = Mailbox()
    actor = DraftActor(ForkingToyBackend(end_logit=-100), box)
    mask = PruneMask(session=1, bits=b"", video_tokens=16, kept=16, method="none", ratio=0.0)
    box.incoming += [opening(1), mask]

    def windows() -> list[DraftWindow]:
        while box.incoming or actor._next_ready() is not None:
            actor.turn(0)
        return [message for message in box.outgoing if isinstance(message, DraftWindow)]

    first, second = windows()  # one is verified, and the next one waits
    assert second.start == first.start + len(first.tokens) == 4
    box.outgoing.clear()
    window = Window(gamma=2, outcomes=outcomes)
    box.incoming.append(Advance(session=1, epoch=0, length=second.start, window=window))
    third, *_ = windows()
    assert third.start == 8
    assert third.parent == second.id


@pytest.mark.parametrize(("at_once", "points"), [(False, [4, 5]), (True, [5, 6])])
def test_nothing_is_prepared_for_a_token_that_is_settled_when_it_arrives(at_once: bool, points: list[int]) -> None:
    """The target holds the logits for the first token of a window that follows an accepted one."""
    preparation = Preparation(limit=48)
    written = Written()
    for token in (1, 2, 3):
        written.add(Drafted(token, None, (token + 3,)))
    preparation.follow(7, 4, written, at_once=at_once)
    assert preparation.due(4)
    preparation.plan((1, 1), 4, 3)
    assert [branch.point for branch in preparation.growing()] == points


def test_the_draft_prepares_nothing_twice() -> None:
    for seed in range(4):
        rng = random.Random(seed)
        parents: list[Parent] = []
        harness = outcome_session(ForkingToyBackend, seed)
        while not harness.coordinator.done:
            before = len(harness.boxes["draft"].outgoing)
            harness.make(rng.choice([move for move in harness.moves() if move != "hear draft"] or ["hear draft"]))
            for message in list(harness.boxes["draft"].outgoing)[before:]:
                if isinstance(message, Prepared):
                    parents += [outcome.parent for outcome in message.outcomes]
        assert parents
        assert len(set(parents)) == len(parents)


def window(id: int, parent: int, start: int, *tokens: int) -> DraftWindow:
    return DraftWindow(session=1, id=id, parent=parent, epoch=0, start=start, tokens=tokens)


def outcome(id: int, of: int, offset: int, token: int, start: int) -> Outcome:
    return Outcome(id=id, parent=Parent(window=of, offset=offset, token=token, start=start), rank=0, tokens=(7, 7))


def test_of_two_windows_for_one_outcome_both_ends_take_the_first() -> None:
    committed: list[int] = []
    held, text = HeldWindows(committed, 0, 48), Text((), 0)
    held.take(window(1, 0, 0, 3, 4))
    text.extend(window(1, 0, 0, 3, 4))
    for id in (2, 3):
        held.take_prepared(Prepared(session=1, epoch=0, outcomes=(outcome(id, 1, 0, 5, 0),)))
    assert [text.prepare([outcome(id, 1, 0, 5, 0)]) for id in (2, 3)] == [1, 0]
    committed.append(5)
    text.committed.append(5)
    assert held.reject(held.queue[0], 5) == 2
    verdict = Verdict(session=1, epoch=0, start=0, tokens=(5,), accepted=0, rejected=True, judged=1, branch=2)
    followed = text.prepared_for(verdict)
    assert followed is not None
    assert followed.id == 2


def test_a_window_for_another_line_takes_no_room_at_the_target() -> None:
    committed: list[int] = []
    held = HeldWindows(committed, 0, 48)
    held.take(window(1, 0, 0, 3, 4))
    held.take_prepared(Prepared(session=1, epoch=0, outcomes=(outcome(2, 1, 0, 5, 0),)))
    committed.append(5)
    assert held.reject(held.queue[0], 5) == 2
    others = tuple(outcome(10 + token, 1, 1, token, 1) for token in range(MAX_OUTCOMES))
    held.take_prepared(Prepared(session=1, epoch=0, outcomes=others))
    assert held.prepared == 0
    held.take_prepared(Prepared(session=1, epoch=0, outcomes=(outcome(3, 2, 1, 5, 2),)))
    assert held.prepared == 1


def test_of_too_many_prepared_windows_the_target_gets_none() -> None:
    """It might keep others than the coordinator counts on."""
    text = Text((), 0)
    text.extend(window(1, 0, 0, 3, 4))
    assert text.prepare([outcome(10 + token, 1, 0, token, 0) for token in range(MAX_OUTCOMES - 1)]) == MAX_OUTCOMES - 1
    assert text.prepare([outcome(200, 1, 1, 5, 1), outcome(201, 1, 1, 6, 1)]) == 0
    assert text.prepare([outcome(200, 1, 1, 5, 1)]) == 1


def test_a_verdict_of_an_earlier_epoch_finds_nothing_prepared() -> None:
    """The windows of a draft that has been started again have the same names."""
    text = Text((), 1)
    text.extend(window(1, 0, 0, 3, 4))
    text.prepare([outcome(2, 1, 0, 5, 0)])
    text.committed.append(5)
    verdict = Verdict(session=1, epoch=0, start=0, tokens=(5,), accepted=0, rejected=True, judged=1)
    assert text.prepared_for(verdict) is None


def test_the_target_draws_no_token_where_a_window_has_just_arrived(monkeypatch: pytest.MonkeyPatch) -> None:
    """Taking turns it adds a token to an accepted window, unless the draft has written on already."""
    text = ToyBackend().greedy(8, end_tokens=())
    box = Mailbox()
    actor = TargetActor(ToyBackend(), box)
    box.incoming += [opening(1, SCHEDULES["no-decode"], committed=(text[0],)), window(1, 0, 1, *text[1:4])]
    extend = ToySession.extend

    def extend_late(session: ToySession, tokens: Sequence[int], **options: Any) -> torch.Tensor:
        if len(tokens) == 3:
            box.incoming.append(window(2, 1, 4, *text[4:7]))
        return extend(session, tokens, **options)

    monkeypatch.setattr(ToySession, "extend", extend_late)
    while box.incoming or actor._next_ready() is not None:
        actor.turn(0)
    verdicts = [message for message in box.outgoing if isinstance(message, Verdict)]
    assert [token for verdict in verdicts for token in verdict.tokens] == text[1:8]
    assert sum(verdict.accepted for verdict in verdicts) == 6
