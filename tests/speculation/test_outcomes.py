"""Prepared outcomes: theorem 8 against a loop that draws tokens, the plans, and the policy that chooses them."""

from __future__ import annotations

import random
from itertools import pairwise, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pvlm.runtime.policies import WindowPolicies, fixed_outcomes
from pvlm.speculation.estimates import HitEstimate
from pvlm.speculation.outcomes import (
    COUNTS,
    HIT_PRIOR,
    OutcomeTimes,
    cumulative,
    outcome_speedup,
    plan_outcomes,
)
from pvlm.speculation.theory import best_parallel_speedup
from pvlm.speculation.windows import AutoWindow
from pvlm_protocols.messages import Pruning, Schedule


def branch_ms(continuations: int) -> float:
    return 46.6 * (1 + 0.3 * (continuations - 1))


def drawn_speedup(
    s: int, k: int, beta: float, plan: tuple[int, ...], target_ms: float, draft_ms: float, lag: float
) -> float:
    """The loop, token by token: which offset is rejected, and which of the draft's other tokens the target's is."""
    most, fewer = branch_ms(1 + sum(plan)), branch_ms(1 + sum(plan[:s]))
    interrupted_ms, unbroken_ms = lag + (s - 1) * most + fewer, s * fewer
    chance = random.Random(s * 100 + k)
    hits = cumulative(HIT_PRIOR)
    tokens, now, n, whole = 0, 0.0, k, False
    for _ in range(60_000):
        now += max(target_ms, unbroken_ms if whole else interrupted_ms)
        held = next((offset for offset in range(n + 1) if chance.random() >= beta), None)
        if held is None:  # the window, and the first token of the next one
            tokens, n, whole = tokens + n + 1, s - 1, True
            continue
        rank = chance.random()
        prepared = rank < hits[plan[held]] if held < len(plan) else False
        tokens += held + 1
        if prepared:
            n, whole = (s, False) if held < n else (s - 1, True)
        else:
            n, whole = k, False
            now += lag + k * draft_ms
    return tokens * target_ms / now


@pytest.mark.parametrize("target_ms", [4200.0, 420.0, 40.0])
@pytest.mark.parametrize(
    ("beta", "s", "k", "count"), [(0.872, 7, 4, 14), (0.811, 4, 2, 5), (0.6, 5, 1, 8), (0.6, 1, 1, 2)]
)
def test_theorem_8_is_what_a_loop_that_draws_tokens_does(
    beta: float, s: int, k: int, count: int, target_ms: float
) -> None:
    hits = cumulative(HIT_PRIOR)
    size = max(s, k)
    plan = plan_outcomes(count, beta, hits, s)
    rates = np.zeros((size, size + 1))
    rates[:, : len(plan)] = [hits[ranks] for ranks in plan]
    times = OutcomeTimes(size, target_ms, 46.6, branch_ms, lag_ms=5.0)
    found = times.speedups(beta, rates, count, plan[s])[s - 1, k - 1]
    drawn = drawn_speedup(s, k, beta, plan, target_ms, 46.6, 5.0)
    assert found == pytest.approx(drawn, rel=0.01)


@settings(max_examples=50, deadline=None)
@given(beta=st.floats(0.3, 0.99), cost=st.floats(0.0, 0.5), c=st.floats(1.0, 10.0))
def test_where_outcomes_help_no_choice_is_much_faster_than_the_bound(beta: float, cost: float, c: float) -> None:
    times = OutcomeTimes(8, 40.0 * c, 40.0, lambda n: 40.0 * (1 + cost * (n - 1)), lag_ms=2.0)
    hits = cumulative((0.6, 0.475))
    without = times.speedups(beta, np.zeros((8, 9)), 0).max()
    assert times.best(beta, hits).speedup <= 1.02 * max(times.bound(beta, hits), without)


@settings(max_examples=30, deadline=None)
@given(
    beta=st.floats(0.2, 1.0),
    cost=st.floats(0.0, 0.5),
    c=st.floats(1.0, 20.0),
    rising=st.floats(0.0, 0.1),
    lag_ms=st.floats(0.0, 5.0),
    size=st.integers(1, 10),
    first=st.floats(0.0, 1.0),
)
def test_the_best_plan_is_the_best_of_all(
    beta: float, cost: float, c: float, rising: float, lag_ms: float, size: int, first: float
) -> None:
    """Of every number of branches that is considered, every s and every k, each in a search of its own."""
    hits = cumulative((first, 0.475))
    times = OutcomeTimes(
        size, lambda n: 20.0 * c * (1 + rising * (n - 1)), 20.0, lambda n: 20.0 * (1 + cost * (n - 1)), lag_ms
    )
    every = 0.0
    for count in COUNTS:
        plans = [plan_outcomes(count, beta, hits, s) for s in range(1, size + 1)]
        rates = np.zeros((size, size + 1))
        for row, plan in zip(rates, plans, strict=True):
            row[: len(plan)] = [hits[ranks] for ranks in plan]
        branches, last = np.array([sum(plan) for plan in plans]), np.array([plan[-1] for plan in plans])
        every = max(every, float(times.speedups(beta, rates, branches, last).max()))
    best = times.best(beta, hits)
    assert best.speedup == pytest.approx(every, rel=1e-9)
    assert len(best.plan) == best.steps + 1
    assert best.plan == plan_outcomes(sum(best.plan), beta, hits, best.steps)


def test_points_of_the_design() -> None:
    """With a flat hit rate and the best s and k, without lags: (T_p, T_q, beta), q_B / T_q, h, S."""
    for (target, draft, beta), cost, hit_rate, speedup in (
        ((420.0, 46.6, 0.872), 1.0, 0.60, 4.66),
        ((420.0, 46.6, 0.872), 1.15, 0.79, 4.78),
        ((203.0, 39.8, 0.811), 1.15, 0.79, 2.96),
        ((203.0, 39.8, 0.811), 1.3, 0.90, 3.04),
    ):
        best = max(
            outcome_speedup(s, k, beta, hit_rate, target, draft, cost * draft)
            for s, k in product(range(1, 12), range(1, 12))
        )
        assert best == pytest.approx(speedup, abs=0.02)


@given(beta=st.floats(0, 1), c=st.floats(1, 30), s=st.integers(1, 16), k=st.integers(1, 16), hit_rate=st.floats(0, 1))
def test_nothing_is_faster_than_the_draft(beta: float, c: float, s: int, k: int, hit_rate: float) -> None:
    found = outcome_speedup(s, k, beta, hit_rate, 1.0, 1 / c, 1 / c)
    assert 0 < found <= c / max(beta, 1e-9) * (1 + 1e-9)


@given(beta=st.floats(0.05, 0.99), count=st.sampled_from(COUNTS), size=st.integers(1, 16))
def test_a_plan_takes_the_likeliest_outcomes(beta: float, count: int, size: int) -> None:
    hits = cumulative(HIT_PRIOR)
    plan = plan_outcomes(count, beta, hits, size)
    assert len(plan) == size + 1
    assert sum(plan) == min(count, 2 * (size + 1))
    assert all(earlier >= later for earlier, later in pairwise(plan))


def test_the_hit_rate_is_learned_by_rank() -> None:
    estimate = HitEstimate()
    assert estimate.hits == pytest.approx((0, 0.6, 0.79))
    for _ in range(200):
        estimate.observe(1, 2)
        estimate.observe(None, 2)
    first, second = estimate.hits[1:]
    assert first < 0.05
    assert second == pytest.approx(0.5, abs=0.1)
    estimate.observe(None, 0)  # nothing was prepared there, so nothing is known
    assert estimate.hits[1:] == (first, second)


def taught(branch_cost: float, target_ms: float = 420.0, draft_ms: float = 46.6, outcomes: int | None = None):
    policy = AutoWindow(outcomes=outcomes)
    for _ in range(4):
        policy.observe_pace("alone", 1, target_ms)
        policy.observe_draft(draft_ms)
        policy.observe_tested(7, 1)
        for n in (1, 5, 9):
            policy.observe_pass(n, target_ms)
        policy.observe_branches(10, draft_ms * (1 + 10 * branch_cost))
    for _ in range(40):
        policy.observe_tested(7, 1)
    return policy


def test_outcomes_are_prepared_where_a_batch_is_nearly_free_and_not_where_it_costs() -> None:
    cheap, dear = taught(0.02).choice(), taught(1.0).choice()
    assert sum(cheap.outcomes) > 6
    assert cheap.speedup is not None
    assert dear.speedup is not None
    assert cheap.speedup > 1.1 * best_parallel_speedup(0.875, 420.0, 46.6, 16)
    assert dear.outcomes == ()
    assert not taught(0.02, outcomes=0).choice().outcomes
    assert sum(taught(1.0, outcomes=5).choice().outcomes) == 5


@settings(max_examples=20, deadline=None)
@given(cost=st.floats(0.0, 2.0), c=st.floats(1.2, 20))
def test_auto_is_the_better_of_both_theorems(cost: float, c: float) -> None:
    auto, without = (taught(cost, 100.0, 100.0 / c, outcomes).choice() for outcomes in (None, 0))
    assert auto.speedup is not None
    assert without.speedup is not None
    assert auto.speedup >= without.speedup / 1.03
    assert bool(auto.outcomes) <= (auto.speedup > without.speedup / 1.001)


def test_a_few_slow_tokens_do_not_speak_against_outcomes() -> None:
    """Many do, until the draft has worked without them for long."""
    policy = taught(0.02)
    for tokens, prepares in ((8, True), (60, False)):
        policy.observe_pace("together", tokens, tokens * 420.0)
        assert bool(policy.choice().outcomes) is prepares
    for _ in range(60):
        policy.observe_pace("together", 12, 12 * 420.0 / best_parallel_speedup(0.875, 420.0, 46.6, 16))
    assert policy.choice().outcomes


def test_an_answer_has_the_outcomes_that_it_asks_for() -> None:
    policies, together = WindowPolicies(), Schedule()
    assert sum(policies.policy(together, Pruning(), 5, 6).choice().outcomes) == 6
    assert policies.policy(together, Pruning(), 5, "auto").choice().outcomes == ()
    assert policies.policy(Schedule(mode="turns"), Pruning(), 5, 6).choice().outcomes == ()
    learned = policies.policy(together, Pruning(), "auto", "auto", "gumbel")
    assert policies.policy(together, Pruning(), "auto", "auto", "gumbel") is learned
    assert policies.policy(together, Pruning(), "auto", "auto", "greedy") is not learned
    assert fixed_outcomes(4, 0) == ()


def test_a_policy_that_learns_of_branches_first_waits_for_the_drafts_own_time() -> None:
    policy = AutoWindow(outcomes=None)
    for _ in range(2):
        policy.observe_branches(2, 5.0)
    assert policy.choice().outcomes == ()
    policy.observe_draft(4.0)
    policy.observe_pass(1, 40.0)
    assert policy.choice().speedup is not None
