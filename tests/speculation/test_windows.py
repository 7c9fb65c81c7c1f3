"""Running estimates, and the window that follows from them."""

from __future__ import annotations

import math
import random
import statistics
import subprocess
import sys
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pvlm.speculation.estimates import HISTORY, AcceptanceEstimate, Estimates, PassTimeEstimate, RunningMedian
from pvlm.speculation.policy import FixedWindow, Way, WindowChoice, WindowPolicy
from pvlm.speculation.theory import BestWindow, LoopTimes, MeasuredCurve, best_window, geometric_sum, loop_speedup
from pvlm.speculation.windows import BASELINE_STEPS, START_GAMMA, AutoWindow
from pvlm_protocols.messages import TargetMode


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=60))
def test_running_median(values: list[float]) -> None:
    median = RunningMedian()
    for value in values:
        median.add(value)
    assert median.value == statistics.median(values[-HISTORY:])
    assert median.count == min(len(values), HISTORY)


@given(
    st.lists(st.tuples(st.integers(1, 12), st.floats(0, 1e3)), min_size=1, max_size=60),
)
def test_pass_times_never_fall_with_n(passes: list[tuple[int, float]]) -> None:
    estimate = PassTimeEstimate()
    for n, ms in passes:
        estimate.observe(n, ms)
    points = estimate.points()
    assert set(points) == {n for n, _ in passes}
    times = [points[n] for n in sorted(points)]
    assert times == sorted(times)
    curve = [estimate.curve()(n) for n in range(1, 20)]
    assert all(after >= before * (1 - 1e-12) for before, after in pairwise(curve))


def test_one_slow_pass_does_not_keep_a_window_from_being_tried_again() -> None:
    passes = PassTimeEstimate()
    for n, ms in [(1, 10.0), (4, 10.0), (4, 10.2), (5, 14.0), (5, 10.1)]:
        passes.observe(n, ms)
    assert passes.points()[5] == 10.1


def test_a_slow_outlier_at_a_rare_n_yields() -> None:
    estimate = PassTimeEstimate()
    estimate.observe(2, 500.0)  # The first pass warms up.
    for _ in range(14):
        estimate.observe(1, 10.0)
        estimate.observe(5, 12.0)
    points = estimate.points()
    assert points[1] == 10.0
    assert points[2] == points[5] < 50


def acceptance_after(betas: list[tuple[float, int]], seed: int) -> float:
    """The estimate after so many tested tokens at each beta, in verdicts of windows of 4."""
    generator = random.Random(seed)
    estimate = AcceptanceEstimate()
    for beta, tokens in betas:
        tested = 0
        while tested < tokens:
            accepted = 0
            while accepted < 4 and generator.random() < beta:
                accepted += 1
            estimate.observe(accepted, int(accepted < 4))
            tested += min(4, accepted + 1)
    return estimate.value


@pytest.mark.parametrize("beta", [0.1, 0.5, 0.8, 0.95])
def test_acceptance_is_unbiased_over_tested_tokens(beta: float) -> None:
    estimates = [acceptance_after([(beta, 400)], seed) for seed in range(200)]
    assert statistics.mean(estimates) == pytest.approx(beta, abs=0.02)
    assert statistics.stdev(estimates) < 0.08


@pytest.mark.parametrize(("before", "after"), [(0.9, 0.4), (0.3, 0.9)])
def test_a_change_is_followed_within_64_tokens(before: float, after: float) -> None:
    estimates = [acceptance_after([(before, 300), (after, 64)], seed) for seed in range(200)]
    assert statistics.mean(estimates) == pytest.approx(after, abs=0.15 * abs(after - before))


def test_counting_untested_tokens_would_be_seen() -> None:
    """beta = 0.8, gamma = 5: with the tokens after a rejection counted as rejected, 0.54 instead of 0.8."""
    generator = random.Random(1)
    estimate, wrong = AcceptanceEstimate(half_life=400), AcceptanceEstimate(half_life=400)
    for _ in range(3000):
        accepted = next((i for i in range(5) if generator.random() >= 0.8), 5)
        estimate.observe(accepted, int(accepted < 5))
        wrong.observe(accepted, 5 - accepted)
    assert estimate.value == pytest.approx(0.8, abs=0.04)
    assert wrong.value == pytest.approx(0.54, abs=0.06)


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 2)), max_size=40))
def test_a_verdict_counts_as_its_tokens_one_by_one(verdicts: list[tuple[int, int]]) -> None:
    together, single = AcceptanceEstimate(), AcceptanceEstimate()
    for accepted, rejected in verdicts:
        together.observe(accepted, rejected)
        for _ in range(accepted):
            single.observe(1, 0)
        for _ in range(rejected):
            single.observe(0, 1)
    assert together.value == pytest.approx(single.value, rel=1e-9)
    assert 0 < together.value <= 1


def test_invalid_measurements() -> None:
    estimates = Estimates()
    with pytest.raises(ValueError, match="0 tokens"):
        estimates.observe_pass(0, 1.0)
    with pytest.raises(ValueError, match="-1"):
        estimates.observe_draft(-1.0)
    with pytest.raises(ValueError, match="nan"):
        estimates.observe_pass(1, math.nan)
    with pytest.raises(ValueError, match="-2 accepted"):
        estimates.observe_tested(-2, 0)
    assert not estimates.timed
    estimates.observe_pass(1, 0.0)  # A coarse clock.
    estimates.observe_draft(0.0)
    assert estimates.timed


# ---- policies -----------------------------------------------------------------------------------------------------


def test_a_fixed_window_stays() -> None:
    policy: WindowPolicy = FixedWindow(5)
    policy.observe_pass(1, 10.0)
    policy.observe_draft(10.0)
    policy.observe_tested(0, 1)
    assert policy.choice() == WindowChoice(5, 0, 0.0)
    assert FixedWindow(5, wait=2).choice() == WindowChoice(5, 2, math.inf)
    for n, wait in ((0, 0), (3, 4), (3, -1)):
        with pytest.raises(ValueError, match="window of"):
            FixedWindow(n, wait)


def test_before_measurements_a_modest_window() -> None:
    policy: WindowPolicy = AutoWindow()
    assert policy.choice() == WindowChoice(START_GAMMA)
    assert AutoWindow(2).choice() == WindowChoice(2)
    policy.observe_tested(0, 1)
    policy.observe_pass(1, 10.0)
    assert policy.choice() == WindowChoice(START_GAMMA)
    with pytest.raises(ValueError, match="gamma_max"):
        AutoWindow(0)


def fed(policy: AutoWindow, beta: float, target_ms: float, draft_ms: float, verdicts: int = 60) -> WindowChoice:
    """A policy after some verdicts of a loop with these properties."""
    generator = random.Random(3)
    for _ in range(verdicts):
        gamma = policy.choice().gamma
        accepted = next((i for i in range(gamma) if generator.random() >= beta), gamma)
        policy.observe_pass(generator.choice([1, gamma]), target_ms * generator.uniform(0.98, 1.02))
        policy.observe_draft(draft_ms * generator.uniform(0.98, 1.02))
        policy.observe_tested(accepted, int(accepted < gamma))
    return policy.choice()


@pytest.mark.parametrize(("beta", "target_ms", "draft_ms"), [(0.87, 90.0, 10.0), (0.5, 90.0, 10.0), (0.8, 20.0, 10.0)])
def test_the_choice_is_nearly_the_best(beta: float, target_ms: float, draft_ms: float) -> None:
    choice = fed(AutoWindow(16), beta, target_ms, draft_ms)
    best = best_window(beta, target_ms, draft_ms, 16, whole_windows=True)
    chosen = loop_speedup(choice.gamma, choice.wait, beta, target_ms, draft_ms, whole_windows=True)
    assert chosen > 0.96 * best.speedup
    assert choice.speedup == pytest.approx(best.speedup, rel=0.3)


def test_a_token_of_a_shared_pass_has_a_price_for_each_session() -> None:
    """Long passes of many sessions say nothing against a window alone, and much against long windows together."""
    target_ms = MeasuredCurve({1: 100.0, 101: 300.0})
    chosen = {}
    for sessions in (1, 8, 1):
        policy = chosen.setdefault("policy", AutoWindow(16))
        policy.observe_sessions(sessions, shared=True)
        for _ in range(40):
            own = policy.choice().gamma + 1
            for tokens in (1, own):
                policy.observe_pass(tokens * sessions, target_ms(tokens * sessions))
            policy.observe_sharing(own * sessions, own)
            policy.observe_draft(5.0)
            policy.observe_tested(7, 1)
        chosen.setdefault(sessions, []).append(policy.choice().gamma)
    alone, again = chosen[1]
    best = best_window(7 / 8, target_ms, 5.0, 16, whole_windows=True).gamma
    best_of_eight = best_window(7 / 8, lambda n: target_ms(8 * n), 5.0, 16, whole_windows=True).gamma
    assert abs(alone - best) <= 1
    assert abs(again - best) <= 1
    assert abs(chosen[8][0] - best_of_eight) <= 1
    assert best_of_eight < best - 2


def test_two_sessions_choose_what_costs_the_target_least() -> None:
    """Each would gain by longer windows, for which the other waits. Both would lose."""
    target_ms = MeasuredCurve({1: 4.0, 4: 4.6, 17: 16.0})
    policy = AutoWindow(16)
    for _ in range(BASELINE_STEPS):
        policy.observe_pass(1, 4.0)
        policy.observe_pace("alone", 1, 4.2)
    policy.observe_sessions(2, shared=True)
    for _ in range(40):
        for tokens in (1, 4, 5, 8, 16):
            policy.observe_pass(tokens, target_ms(tokens))
            policy.observe_sharing(tokens, tokens)
        policy.observe_draft(0.5)
        policy.observe_lag(3.0)
        policy.observe_tested(4, 1)
    choice = policy.choice()

    def each(gamma: int, other_ms: float) -> float:
        return geometric_sum(0.8, gamma + 1) / (target_ms(gamma + 1) + other_ms)

    least, selfish = (max(range(1, 17), key=lambda gamma: each(gamma, other)) for other in (0.0, target_ms(4)))
    assert choice.turns
    assert choice.pays
    assert abs(choice.gamma - least) <= 1 < selfish - least


def test_plain_decoding_of_several_sessions_is_one_pass() -> None:
    estimates = Estimates()
    for tokens, ms in ((1, 4.0), (2, 5.0), (4, 8.0)):
        estimates.observe_pass(tokens, ms)
    assert estimates.step_ms is None
    estimates.observe_step(4.5)
    estimates.sessions = 4
    assert estimates.step_ms == pytest.approx(8.5)
    estimates.observe_step(9.0)
    assert (estimates.step_ms, estimates.steps) == (9.0, 2)
    estimates.sessions = 1
    assert estimates.step_ms == 4.5


def test_where_sessions_share_no_passes_plain_decoding_takes_turns() -> None:
    estimates = Estimates()
    estimates.observe_pass(1, 4.0)
    estimates.observe_step(4.5)
    estimates.sessions, estimates.shared = 4, False
    assert estimates.step_ms == 18.0
    assert estimates.groups == 4


@pytest.mark.parametrize("seed", range(8))
def test_the_window_settles_within_64_tokens(seed: int) -> None:
    """From the first guess, and after each change of the acceptance, where long passes cost more (so it matters)."""
    generator = random.Random(seed)
    policy = AutoWindow(16)
    target_ms = MeasuredCurve({1: 60.0, 17: 120.0})
    draft_ms = 60 / 9
    for beta in (0.9, 0.6, 0.9):
        tested = 0
        while tested < 64:
            gamma = policy.choice().gamma
            accepted = next((i for i in range(gamma) if generator.random() >= beta), gamma)
            for tokens in (1, gamma):
                policy.observe_pass(tokens, target_ms(tokens) * generator.uniform(0.98, 1.02))
            policy.observe_draft(draft_ms * generator.uniform(0.98, 1.02))
            policy.observe_tested(accepted, int(accepted < gamma))
            tested += accepted + int(accepted < gamma)
        choice = policy.choice()
        best = best_window(beta, target_ms, draft_ms, 16, whole_windows=True).speedup
        assert loop_speedup(choice.gamma, choice.wait, beta, target_ms, draft_ms, whole_windows=True) > 0.95 * best


def test_the_window_follows_acceptance() -> None:
    policy = AutoWindow(16)
    hopeful = fed(policy, 0.97, 100.0, 10.0)
    doubtful = fed(policy, 0.2, 100.0, 10.0)
    assert hopeful.gamma >= 8
    assert doubtful.gamma < hopeful.gamma or doubtful.wait > 0
    assert doubtful.speedup is not None
    assert hopeful.speedup is not None
    assert doubtful.speedup < hopeful.speedup / 2


def test_the_window_follows_the_models_times() -> None:
    """After a target, then a draft, has become another (a longer cache, a busy machine)."""
    policy = AutoWindow(16)
    assert fed(policy, 0.9, 100.0, 10.0).gamma >= 7
    assert fed(policy, 0.9, 30.0, 10.0).gamma <= 4
    assert fed(policy, 0.9, 30.0, 3.0).gamma >= 7


def test_a_draft_as_slow_as_the_target_does_not_pay() -> None:
    choice = fed(AutoWindow(16), 0.5, 10.0, 20.0)
    assert choice.speedup is not None
    assert choice.speedup < 1


def test_patience_is_a_token_beyond_where_waiting_stops_to_pay() -> None:
    """A wait as long as the patience less a token costs as much per cycle as stepping alone."""
    policy = AutoWindow(16)
    gamma, k, patience_ms, *_ = fed(policy, 0.87, 90.0, 10.0)
    assert k > 0
    patience_ms -= policy.estimates.draft.value
    beta, draft_ms = policy.estimates.acceptance.value, policy.estimates.draft.value
    curve = policy.estimates.passes.curve()
    without_wait, with_wait = LoopTimes([gamma], [0, k], curve, draft_ms).cycle_ms(beta, whole_windows=True)[0]
    assert with_wait - k * draft_ms + patience_ms == pytest.approx(without_wait, rel=0.05)
    assert k * draft_ms < patience_ms < 3 * k * draft_ms + 90


def test_a_draft_that_starts_late_is_given_more_time_and_expected_to_gain_less() -> None:
    prompt, late, hopeless = AutoWindow(16), AutoWindow(16), AutoWindow(16)
    late.observe_lag(10.0)
    hopeless.observe_lag(2000.0)
    in_time, delayed, never = (fed(policy, 0.87, 90.0, 10.0) for policy in (prompt, late, hopeless))
    assert in_time.wait > 0
    assert delayed.patience_ms > in_time.patience_ms + 5
    assert delayed.speedup < in_time.speedup
    assert not never.pays


def stepped(policy: AutoWindow, ms: float, tokens: int = 8) -> None:
    for _ in range(tokens):
        policy.observe_pace("alone", 1, ms)


def test_plain_decoding_is_timed_before_drafting_is_compared_with_it() -> None:
    """With all that lies between its passes: a step of 15 ms, of which the pass takes 10."""
    policy = AutoWindow(16)
    assert not policy.baselined
    stepped(policy, 15.0)
    assert policy.baselined
    with_gaps = fed(policy, 0.8, 10.0, 4.0).speedup
    without = fed(AutoWindow(16), 0.8, 10.0, 4.0).speedup
    assert with_gaps is not None
    assert without is not None
    assert with_gaps == pytest.approx(1.5 * without, rel=0.05)
    assert FixedWindow(4).baselined
    assert AutoWindow(16, vanilla=True).baselined


def test_windows_that_arrive_late_gain_less() -> None:
    prompt, late = AutoWindow(16), AutoWindow(16)
    for _ in range(8):
        late.observe_transit(6.0)
    assert fed(late, 0.8, 20.0, 2.0).speedup < fed(prompt, 0.8, 20.0, 2.0).speedup  # type: ignore[operator]


def paced(policy: AutoWindow, way: Way, share: float, tokens: int) -> WindowChoice:
    """After so many tokens in a way at a share of the predicted speed."""
    assert policy._step_ms is not None
    for _ in range(tokens // 4):
        mode: TargetMode = "together" if way == "prepared" else way
        policy.observe_pace(mode, 4, 4 * policy._step_ms / policy._predicted[way] / share)
    return policy.choice()


def test_the_pace_decides_and_not_the_prediction_alone() -> None:
    """Predicted is a speed-up. What was reached is less than plain decoding: the draft rests, and is tried again when
    the measurement is old.
    """
    policy = AutoWindow(16)
    stepped(policy, 20.0)
    hopeful = fed(policy, 0.8, 20.0, 4.0)
    assert hopeful.pays
    assert hopeful.speedup is not None
    for mode in ("together", "turns"):
        choice = paced(policy, mode, 0.7 / hopeful.speedup, 256)
    assert not choice.pays
    stepped(policy, 20.0, tokens=64)
    assert not policy.choice().pays
    stepped(policy, 20.0, tokens=4000)
    assert policy.choice().pays


def test_what_did_not_pay_has_to_promise_more_to_be_tried_again() -> None:
    """So a pair at the edge does not come and go: each return costs a window or two."""
    policy, fresh = AutoWindow(16), AutoWindow(16)
    for one in (policy, fresh):
        stepped(one, 20.0)
        fed(one, 0.5, 20.0, 12.0)
    edge = fresh.choice()
    assert edge.speedup is not None
    assert 1.02 < edge.speedup < 1.1
    assert edge.pays
    assert not paced(policy, "together", 0.8, 64).pays
    stepped(policy, 20.0, tokens=2400)
    again = policy.choice()
    assert again.speedup is not None
    assert again.speedup > 1.02
    assert not again.pays


def test_a_slow_draft_is_hopeless_and_one_that_guesses_badly_is_not() -> None:
    """The next video may be an easy one for it; no video makes a draft faster."""
    slow, bad, good = (AutoWindow(16) for _ in range(3))
    for policy in (slow, bad, good):
        stepped(policy, 19.0)
    assert fed(slow, 0.9, 20.0, 24.0)[4:6] == (False, True)
    assert fed(bad, 0.02, 20.0, 4.0)[4:6] == (False, False)
    assert fed(good, 0.9, 20.0, 4.0)[4:6] == (True, False)


def test_outcomes_that_gain_less_than_predicted_are_given_up_and_tried_again_later() -> None:
    policy = AutoWindow(16, outcomes=None)
    stepped(policy, 60.0)
    fed(policy, 0.87, 60.0, 7.0)
    policy.observe_branches(6, 7.2)
    prepared = policy.choice()
    assert prepared.outcomes
    assert not paced(policy, "prepared", 0.6, 64).outcomes
    assert not paced(policy, "together", 1.0, 256).outcomes
    assert paced(policy, "together", 1.0, 4000).outcomes


def test_a_run_of_right_guesses_does_not_end_the_preparing() -> None:
    """Sizes follow the last tokens; whether outcomes are prepared follows the acceptance over a longer time."""
    policy = AutoWindow(16, outcomes=None)
    stepped(policy, 60.0)
    fed(policy, 0.87, 60.0, 30.0, verdicts=120)
    policy.observe_branches(6, 30.0 * 1.12)
    assert policy.choice().outcomes
    for _ in range(3):
        policy.observe_tested(60, 0)
        assert policy.estimates.acceptance.value > 0.97
        assert policy.choice().outcomes
        for _ in range(3):
            policy.observe_tested(0, 1)
        assert policy.choice().outcomes
    policy.observe_tested(600, 0)
    assert not policy.choice().outcomes


def test_an_interruption_is_no_evidence() -> None:
    policy = AutoWindow(16)
    stepped(policy, 20.0)
    assert fed(policy, 0.9, 20.0, 2.0).pays
    paced(policy, "together", 1.0, 32)
    policy.observe_pace("together", 4, 60_000.0)
    assert policy.choice().pays


def test_it_takes_turns_where_that_is_faster() -> None:
    """Predicted about as fast. Two models at work at the same time are slower than predicted here, as where they share
    a memory.
    """
    policy = AutoWindow(16)
    stepped(policy, 20.0)
    assert not fed(policy, 0.9, 20.0, 0.5).turns
    assert paced(policy, "together", 0.6, 64).turns
    settled = paced(policy, "turns", 1.0, 64)
    assert settled.turns
    assert settled.pays
    assert paced(policy, "turns", 0.3, 64).turns is False


def test_vanilla_windows_are_shorter() -> None:
    assert fed(AutoWindow(16, vanilla=True), 0.8, 50.0, 10.0).gamma < 7
    assert fed(AutoWindow(16, vanilla=True), 0.8, 50.0, 10.0).wait == 0


def test_a_choice_is_computed_rarely(monkeypatch: pytest.MonkeyPatch) -> None:
    """The promise is 50 microseconds on average; a count of computations does not depend on the machine."""
    computed = 0
    best = LoopTimes.best

    def counting(times: LoopTimes, beta: float, **how: bool) -> BestWindow:
        nonlocal computed
        computed += 1
        return best(times, beta, **how)

    monkeypatch.setattr(LoopTimes, "best", counting)
    policy = AutoWindow(16)
    fed(policy, 0.8, 90.0, 10.0, verdicts=600)
    assert 0 < computed < 120
    before = computed
    for _ in range(100):
        policy.choice()
    assert computed == before


def test_times_that_move_with_every_pass_do_not_void_every_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a busy machine; the acceptance stays, so that only the times are at work."""
    computed = 0
    timed = LoopTimes.__init__

    def counting(*arguments: Any) -> None:
        nonlocal computed
        computed += 1
        timed(*arguments)

    monkeypatch.setattr(LoopTimes, "__init__", counting)
    policy = AutoWindow(16)
    generator = random.Random(5)
    for _ in range(400):
        policy.observe_pass(8, 90.0 * generator.uniform(0.5, 1.5))
        policy.observe_draft(10.0 * generator.uniform(0.5, 1.5))
        policy.choice()
    assert 10 < computed <= 400 / 8 + 5


def test_while_times_stay_a_choice_is_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each step of the acceptance is computed once, and the times are not looked at again."""
    computed: list[float] = []
    timed: list[float] = []
    best, times = LoopTimes.best, LoopTimes.__init__

    def counting(loop: LoopTimes, beta: float, **how: bool) -> BestWindow:
        computed.append(beta)
        return best(loop, beta, **how)

    def counting_times(loop: LoopTimes, *arguments: Any) -> None:
        timed.append(0)
        times(loop, *arguments)

    policy = AutoWindow(16)
    fed(policy, 0.8, 90.0, 10.0)
    monkeypatch.setattr(LoopTimes, "best", counting)
    monkeypatch.setattr(LoopTimes, "__init__", counting_times)
    generator = random.Random(4)
    for _ in range(400):
        policy.observe_pass(8, generator.uniform(89.5, 90.5))
        policy.observe_draft(generator.uniform(9.9, 10.1))
        policy.observe_tested(4, generator.random() < 0.7)
        policy.choice()
    assert timed == []
    assert 0 < len(computed) == len(set(computed))


def test_the_engines_half_does_not_import_torch() -> None:
    modules = "estimates", "gaps", "masks", "text", "theorems", "theory", "windows"
    code = (
        f"import sys\nfor name in {modules}: __import__('pvlm.speculation.' + name)\nassert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
