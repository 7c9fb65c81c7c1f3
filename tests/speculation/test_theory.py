"""The theorems at their limits and at the paper's points, and the loop against a simulation of it.

The simulation knows nothing of the formulas: it moves a draft and a target through events. Seeds are fixed.
"""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Callable
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pvlm.speculation.theorems import (
    accepted_length,
    ideal_speedup,
    parallel_speedup_barrier,
    parallel_speedup_free,
    parallel_speedup_ideal,
    vanilla_speedup_ideal,
)
from pvlm.speculation.theory import (
    LoopTimes,
    MeasuredCurve,
    acceptance_from_length,
    best_parallel_speedup,
    best_vanilla_window,
    best_window,
    geometric_sum,
    loop_speedup,
    parallel_speedup,
    vanilla_loop_speedup,
    vanilla_speedup,
)


def simulated_vanilla(gamma: int, beta: float, target: Callable[[int], float], draft_ms: float, seed: int) -> float:
    """Speed-up of plain speculative decoding over 10,000 rounds: gamma tokens are written, then a pass takes them in
    after the last committed one.
    """
    chance = random.Random(seed)
    tokens, now = 0, 0.0
    for _ in range(10_000):
        now += gamma * draft_ms + target(gamma + 1)
        accepted = 0
        while accepted < gamma and chance.random() < beta:
            accepted += 1
        tokens += accepted + 1  # A correction, or the bonus token.
    return tokens * target(1) / now


class SimulatedLoop:
    """Draft and target as event-driven actors. In ms; tokens count from the last rollback.

    The draft writes at most one full window beyond the one that the target has in work, and starts ``lag_ms`` after a
    rollback. ``whole``: the target sees drafted tokens a window at a time.
    """

    def __init__(
        self,
        gamma: int,
        k: int,
        beta: float,
        target: Callable[[int], float],
        draft_ms: float,
        whole: bool,
        seed: int,
        lag_ms: float = 0.0,
    ) -> None:
        self.lag_ms = lag_ms
        self.gamma, self.k, self.beta, self.target, self.draft_ms, self.whole = gamma, k, beta, target, draft_ms, whole
        self.random = random.Random(seed)
        self.now = 0.0
        self.tokens = 0
        self.rollbacks = 0
        self.events: list[tuple[float, int, str, int]] = []
        self.order = 0
        self.roll_back()

    def run(self, rollbacks: int) -> float:
        """Speed-up over that many rollbacks."""
        while self.rollbacks <= rollbacks:
            self.now, _, kind, epoch = heapq.heappop(self.events)
            if epoch != self.rollbacks:
                continue
            if kind == "token":
                self.written += 1
                self.drafting = False
            else:
                self.pass_ended()
            if epoch == self.rollbacks:
                self.move()
        return self.tokens * self.target(1) / self.now

    def after(self, ms: float, kind: str) -> None:
        self.order += 1
        heapq.heappush(self.events, (self.now + ms, self.order, kind, self.rollbacks))

    def roll_back(self) -> None:
        """The target has put its own token in place of a drafted one."""
        self.rollbacks += 1
        self.tokens += 1
        self.written = 0
        self.settled = 0
        self.window = 0  # Number of the window in work; window 0 has the k tokens that are waited for.
        self.state = "corrected"
        self.drafting = False
        self.move()

    def end_of(self, window: int) -> int:
        return self.k + window * self.gamma

    def move(self) -> None:
        """Both actors start whatever they can."""
        if self.state == "corrected" and self.written >= self.k:
            self.state = "pass"
            self.after(self.target(self.k + 1), "verdict")
        elif self.state == "holding":
            wanted = self.end_of(self.window + 1) if self.whole else self.settled + 1
            if self.written >= wanted:
                if not self.settle(1):
                    return
                self.state = "first settled"
        if self.state == "first settled" and self.written >= self.end_of(self.window + 1):
            self.window += 1
            self.state = "pass"
            self.after(self.target(self.gamma), "verdict")
        if not self.drafting and self.written < self.end_of(self.window + 1):
            self.drafting = True
            self.after(self.draft_ms + (0 if self.written else self.lag_ms), "token")

    def pass_ended(self) -> None:
        if self.settle(self.end_of(self.window) - self.settled):
            self.state = "holding"

    def settle(self, count: int) -> bool:
        for _ in range(count):
            if self.random.random() >= self.beta:
                self.roll_back()
                return False
            self.settled += 1
            self.tokens += 1
        return True


def flat(n: int) -> float:
    return 10.0


def rising(n: int) -> float:
    """A pass over 10 tokens takes half as long again."""
    return 10.0 + 0.5 * (n - 1)


measured = MeasuredCurve({1: 10.0, 2: 12.0, 4: 12.5, 8: 13.0, 10: 18.0})
"""With a step after one token and another after eight, as tiles of a GPU or threads of a CPU make them."""


GRID = [
    (c, beta, gamma, k)
    for c, beta, (gamma, k) in product((0.7, 3.0, 9.0), (0.4, 0.87), ((1, 0), (1, 1), (4, 0), (5, 3), (9, 2)))
]


CURVES = {"flat": flat, "rising": rising, "measured": measured}


@pytest.mark.parametrize("curve", CURVES.values(), ids=CURVES.keys())
@pytest.mark.parametrize("whole", [False, True], ids=["token by token", "whole windows"])
def test_the_loop_is_what_the_formula_says(curve: Callable[[int], float], whole: bool) -> None:
    """Within 2%, for a draft faster and slower than the target, windows shorter and longer than c."""
    worst = 0.0
    for c, beta, gamma, k in GRID:
        simulated = SimulatedLoop(gamma, k, beta, curve, 10.0 / c, whole, seed=1).run(4000)
        predicted = loop_speedup(gamma, k, beta, curve, 10.0 / c, whole_windows=whole)
        worst = max(worst, abs(simulated / predicted - 1))
    assert worst < 0.02


@pytest.mark.parametrize("whole", [False, True], ids=["token by token", "whole windows"])
def test_a_draft_that_starts_late(whole: bool) -> None:
    for c, lag_ms, (gamma, k) in product((2.0, 9.0), (0.5, 3.0, 12.0), ((1, 0), (5, 3), (9, 2))):
        simulated = SimulatedLoop(gamma, k, 0.8, rising, 10.0 / c, whole, seed=6, lag_ms=lag_ms).run(4000)
        predicted = LoopTimes([gamma], [k], rising, 10.0 / c, lag_ms).best(0.8, whole_windows=whole).speedup
        assert simulated == pytest.approx(predicted, rel=0.02)


@pytest.mark.parametrize("curve", CURVES.values(), ids=CURVES.keys())
def test_theorem_7_where_the_draft_keeps_up(curve: Callable[[int], float]) -> None:
    """Within 2% of the simulation wherever gamma T_q <= T_p(1); and theorem 6 there for a flat T_p and k = 0."""
    points = 0
    for c, beta, (gamma, k) in product((4.0, 9.5), (0.5, 0.9), ((2, 0), (3, 1), (6, 3), (9, 0))):
        if gamma > c:
            continue
        points += 1
        simulated = SimulatedLoop(gamma, k, beta, curve, 10.0 / c, True, seed=3).run(7000)
        assert simulated == pytest.approx(parallel_speedup(gamma, k, beta, curve, 10.0 / c), rel=0.02)
        if curve is flat and k == 0:
            assert simulated == pytest.approx(parallel_speedup_barrier(gamma, beta, c), rel=0.02)
    assert points == 12


@pytest.mark.parametrize("curve", CURVES.values(), ids=CURVES.keys())
def test_theorem_4_is_what_vanilla_decoding_does(curve: Callable[[int], float]) -> None:
    for c, beta in product((0.7, 3.0, 9.0), (0.4, 0.87)):
        best = best_vanilla_window(beta, curve, 10.0 / c, 10)
        assert simulated_vanilla(best.gamma, beta, curve, 10.0 / c, seed=4) == pytest.approx(best.speedup, rel=0.02)
    assert simulated_vanilla(5, 0.8, flat, 2.0, seed=5) == pytest.approx(vanilla_speedup(5, 0.8, 5), rel=0.02)


def simulated_vanilla_of_two(gamma: int, beta: float, curve: Callable[[int], float], draft_ms: float) -> float:
    """Two sessions, each with a draft of its own, take turns at a target; over a pass for both at once."""
    generator = random.Random(9)
    committed, free_ms, drafted_ms = 0, 0.0, [0.0, gamma * draft_ms]
    for _ in range(4000):
        first = drafted_ms.index(min(drafted_ms))
        free_ms = max(free_ms, drafted_ms[first]) + curve(gamma + 1)
        drafted_ms[first] = free_ms + gamma * draft_ms
        committed += 1 + next((i for i in range(gamma) if generator.random() >= beta), gamma)
    return committed / free_ms / (2 / curve(2))


@pytest.mark.parametrize("gamma", [2, 5, 9])
def test_two_sessions_in_turn_at_a_target(gamma: int) -> None:
    """While one is verified, the draft writes for the other. It is too slow at c = 4 and gamma = 9."""
    for c in (4.0, 20.0):
        predicted = vanilla_loop_speedup(gamma, 0.8, rising, 10.0 / c, step_ms=rising(2), groups=2)
        assert simulated_vanilla_of_two(gamma, 0.8, rising, 10.0 / c) == pytest.approx(predicted, rel=0.02)


@given(gamma=st.integers(1, 12), beta=st.floats(0, 0.95), groups=st.floats(1, 4), data=st.data())
def test_where_others_passes_hide_the_draft_only_passes_count(
    gamma: int, beta: float, groups: float, data: st.DataObject
) -> None:
    k = data.draw(st.integers(0, gamma))
    alone = LoopTimes([gamma], [k], 10.0, 1e-9).best(beta, whole_windows=True).speedup
    among = LoopTimes([gamma], [k], 10.0, 1e-9, groups=groups).best(beta, whole_windows=True).speedup
    assert among == pytest.approx(alone / groups, rel=1e-6)


def test_the_simulation_tells_the_forms_apart() -> None:
    """At c = 5, beta = 0.7, gamma = 9: the barrier form is a third off, and a window sent whole costs 10%."""
    simulated = SimulatedLoop(9, 0, 0.7, flat, 2.0, False, seed=2).run(20_000)
    assert simulated == pytest.approx(1.44, rel=0.015)
    assert parallel_speedup_barrier(9, 0.7, 5) == pytest.approx(1.07, abs=0.005)
    assert loop_speedup(9, 0, 0.7, flat, 2.0) == pytest.approx(1.441, abs=0.001)
    assert SimulatedLoop(9, 0, 0.7, flat, 2.0, True, seed=2).run(20_000) == pytest.approx(1.30, rel=0.015)


# ---- the paper ----------------------------------------------------------------------------------------------------


def test_points_of_the_paper() -> None:
    """Speed-ups that theorems 6 and 7 predict from M and c; what the paper measured is in the comments."""
    assert acceptance_from_length(6.8) == pytest.approx(0.872, abs=5e-4)
    assert accepted_length(acceptance_from_length(4.3)) == pytest.approx(4.3)
    # 7B & 72B: 3.36
    assert parallel_speedup_barrier(9, 0.872, 9) == pytest.approx(3.50, abs=0.005)
    assert parallel_speedup(9, 3, 0.872, 9.0, 1.0) == pytest.approx(3.64, abs=0.01)
    assert best_window(0.872, 9.0, 1.0, 16) == (9, 3, pytest.approx(3.64, abs=0.01))
    # Qwen 7B & 32B: 2.42
    beta = acceptance_from_length(4.3)
    assert parallel_speedup(5, 0, beta, 203.0, 39.8) == pytest.approx(2.35, abs=0.01)
    assert best_window(beta, 203.0, 39.8, 16).speedup == pytest.approx(2.40, abs=0.01)
    # 7B & 7B: 1.55, M > 14, at gamma = 2; the draft writes a token in 46.6 ms, the target takes 78.3
    assert parallel_speedup_barrier(2, acceptance_from_length(14), 78.3 / 46.6) == pytest.approx(1.53, abs=0.01)
    # 0.5B & 7B: 2.11
    assert parallel_speedup_barrier(3, acceptance_from_length(8.3), 3.0) == pytest.approx(2.28, abs=0.01)


# ---- limits and relations -----------------------------------------------------------------------------------------


@given(n=st.integers(0, 40), beta=st.floats(0, 0.999))
def test_geometric_sum(n: int, beta: float) -> None:
    assert geometric_sum(beta, n) == pytest.approx((1 - beta**n) / (1 - beta), rel=1e-9)
    assert geometric_sum(1.0, n) == n


@pytest.mark.parametrize(("gamma", "c"), [(1, 3.0), (4, 4.0), (9, 5.0), (3, 9.0)])
def test_limits(gamma: int, c: float) -> None:
    # Everything accepted.
    assert vanilla_speedup(gamma, 1, c) == pytest.approx((gamma + 1) / (gamma / c + 1))
    assert parallel_speedup_free(gamma, 1, c) == pytest.approx(min(gamma, c))
    assert parallel_speedup_barrier(gamma, 1, c) == pytest.approx(min(gamma, c))
    assert parallel_speedup_ideal(gamma, c) == min(gamma, c)
    assert parallel_speedup(gamma, 1, 1, c, 1.0) == pytest.approx(min(gamma, c))
    assert loop_speedup(gamma, 1, 1, c, 1.0) == pytest.approx(min(gamma, c))
    # Nothing accepted: one token a round.
    assert vanilla_speedup(gamma, 0, c) == pytest.approx(1 / (gamma / c + 1))
    assert parallel_speedup_free(gamma, 0, c) == pytest.approx(1 / max(1, gamma / c))
    assert parallel_speedup_barrier(gamma, 0, c) == pytest.approx(1 / max(1, gamma / c))
    assert parallel_speedup(gamma, 0, 0, c, 1.0) == pytest.approx(1.0)
    assert loop_speedup(gamma, 0, 0, c, 1.0) == pytest.approx(1.0)
    assert loop_speedup(gamma, 1, 0, c, 1.0) == pytest.approx(c / (c + 1))
    # And without a jump on the way there.
    for speedup in (
        lambda beta: vanilla_speedup(gamma, beta, c),
        lambda beta: parallel_speedup_barrier(gamma, beta, c),
        lambda beta: parallel_speedup(gamma, 1, beta, c, 1.0),
        lambda beta: loop_speedup(gamma, 1, beta, c, 1.0),
    ):
        assert speedup(1 - 1e-9) == pytest.approx(speedup(1.0), rel=1e-6)
        assert speedup(1e-12) == pytest.approx(speedup(0.0), rel=1e-6)


def test_ideal_forms() -> None:
    assert ideal_speedup(0.9, 5.0) == pytest.approx(4.5)
    assert ideal_speedup(1.5, 5.0) == 5.0
    assert vanilla_speedup_ideal(5, 5.0) == pytest.approx(2.5)


gammas, betas, ratios = st.integers(1, 20), st.floats(0, 1), st.floats(0.2, 20)


@given(gamma=gammas, beta=betas, c=ratios, data=st.data())
def test_how_the_forms_are_ordered(gamma: int, beta: float, c: float, data: st.DataObject) -> None:
    k = data.draw(st.integers(0, gamma))
    barrier, seventh = parallel_speedup_barrier(gamma, beta, c), parallel_speedup(gamma, 0, beta, c, 1.0)
    assert barrier <= seventh * (1 + 1e-9)
    assert seventh <= parallel_speedup_ideal(gamma, c) * (1 + 1e-9) or gamma > c or beta < 1
    if gamma <= c:
        assert barrier == pytest.approx(seventh, rel=1e-9)
    loop = loop_speedup(gamma, k, beta, c, 1.0)
    if c >= 1:
        assert loop == pytest.approx(parallel_speedup(gamma, k, beta, c, 1.0), rel=1e-9)
    assert loop_speedup(gamma, k, beta, c, 1.0, whole_windows=True) <= loop * (1 + 1e-9)
    if beta < 1:
        cycle_ms = float(LoopTimes([gamma], [k], c, 1.0).cycle_ms(beta, whole_windows=False)[0, 0])
        assert c / (1 - beta) / cycle_ms == pytest.approx(loop, rel=1e-6)


@given(beta=betas, c=ratios, limit=st.integers(1, 12), slope=st.floats(0, 2), whole=st.booleans())
def test_the_best_window_is_the_best(beta: float, c: float, limit: int, slope: float, whole: bool) -> None:
    def curve(n: int) -> float:
        return c + slope * (n - 1)

    best = best_window(beta, curve, 1.0, limit, 3, whole_windows=whole)
    everything = {
        (gamma, k): loop_speedup(gamma, k, beta, curve, 1.0, whole_windows=whole)
        for gamma in range(1, limit + 1)
        for k in range(min(gamma, 3) + 1)
    }
    assert best.speedup == pytest.approx(max(everything.values()))
    assert best.speedup == pytest.approx(everything[best.gamma, best.k])


def test_the_best_vanilla_window() -> None:
    best = best_vanilla_window(0.8, 10.0, 1.0, 16)
    assert best.speedup == pytest.approx(max(vanilla_speedup(gamma, 0.8, 10.0) for gamma in range(1, 17)))
    assert best.speedup == pytest.approx(vanilla_speedup(best.gamma, 0.8, 10.0))
    assert best.speedup == vanilla_loop_speedup(best.gamma, 0.8, 10.0, 1.0)
    near = best_vanilla_window(0.8, 10.0, 1.0, 16, nearly=0.03)
    assert near.gamma < best.gamma
    assert 0.97 * best.speedup <= near.speedup <= best.speedup
    steep = best_vanilla_window(0.8, lambda n: 10.0 * n, 1.0, 16)
    assert steep.gamma == 1
    assert steep.speedup < 1


def test_the_best_by_theorem_7() -> None:
    """Of the pair 7B & 72B; a larger limit than the best window changes nothing."""
    found = [best_parallel_speedup(0.872, 9.0, 1.0, limit) for limit in (8, 9, 16)]
    assert found[0] < found[1] == found[2] == parallel_speedup(9, 3, 0.872, 9.0, 1.0)


def test_equal_windows_give_the_smallest() -> None:
    assert best_window(0.0, 10.0, 1.0, 12)[:2] == (1, 0)


def test_invalid_arguments() -> None:
    with pytest.raises(ValueError, match="gamma is 0"):
        loop_speedup(0, 0, 0.5, 1.0, 1.0)
    with pytest.raises(ValueError, match="k is 5"):
        parallel_speedup(4, 5, 0.5, 1.0, 1.0)
    with pytest.raises(ValueError, match=r"beta is 1\.5"):
        best_window(1.5, 1.0, 1.0, 4)


def test_a_measured_curve() -> None:
    curve = MeasuredCurve({2: 10.0, 4: 14.0, 8: 16.0})
    assert [curve(n) for n in (1, 2, 3, 4, 6, 8, 9)] == [10.0, 10.0, 12.0, 14.0, 15.0, 16.0, 17.0]
    falling = MeasuredCurve({1: 10.0, 3: 8.0})
    assert falling(2) == 9.0
    assert falling(9) == 8.0
    assert MeasuredCurve({5: 3.0})(1) == MeasuredCurve({5: 3.0})(99) == 3.0
    for wrong in ({}, {0: 1.0}, {1: 0.0}, {1: math.nan}):
        with pytest.raises(ValueError, match="pass times"):
            MeasuredCurve(wrong)
