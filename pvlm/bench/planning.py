"""Theory's predictions for a pair of models: speed-ups over the window, from times and acceptance rates.

The figures come from elsewhere (a paper, a profile), or `measure` measures them on one video.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from statistics import median
from typing import TYPE_CHECKING, Any

import msgspec

from pvlm.bench.pairs import BRANCH_COST
from pvlm.bench.rows import measured, pooled_acceptance
from pvlm.config import EngineConfig
from pvlm.engine import Engine
from pvlm.errors import ModelError, OptionError
from pvlm.results import AnswerStats
from pvlm.speculation.estimates import PassTimeEstimate
from pvlm.speculation.outcomes import HIT_PRIOR, OutcomeTimes, cumulative
from pvlm.speculation.theory import (
    MeasuredCurve,
    best_vanilla_window,
    best_window,
    loop_speedup,
    parallel_speedup,
    vanilla_loop_speedup,
)
from pvlm.telemetry.observers import OnProgress
from pvlm_protocols.limits import MAX_WINDOW

if TYPE_CHECKING:
    from pvlm.video.reading import VideoSource

PASS_SIZES = (1, 2, 3, 5, 8, 12)
"""Tokens of the passes that `measure` times."""
TIMED_TOKENS = 48
"""Tokens of an answer whose passes are timed."""
ACCEPTANCE_WINDOW = 5
"""Window of the answers that measure the acceptance rate. It is fixed, so that only the prune ratio differs."""


class PairFigures(msgspec.Struct, frozen=True, kw_only=True):
    """The input of a prediction. ``target_ms``: T_p(n) in ms by n. ``draft_ms`` (T_q in ms) and ``acceptance`` (beta):
    by prune ratio.
    """

    target_ms: dict[int, float]
    draft_ms: dict[float, float]
    acceptance: dict[float, float]


class PlannedWindow(msgspec.Struct, frozen=True, kw_only=True):
    """Predicted speed-ups over plain decoding for windows of ``gamma`` tokens.

    ``vanilla``: theorem 4 with T_p(n). ``parallel``: pvlm's loop with whole windows, at its best ``k``. ``theorem_7``:
    the paper's loop with the same k. ``theorem_8``: the loop with prepared outcomes and steps of ``gamma`` tokens, at
    its best k and number of outcomes.
    """

    gamma: int
    k: int
    vanilla: float
    parallel: float
    theorem_7: float
    theorem_8: float


class RatioPlan(msgspec.Struct, frozen=True, kw_only=True):
    """The predictions at one prune ratio. ``c``: T_p(1) / T_q; ``acceptance``: beta.

    ``gamma``, ``k`` and ``speedup`` belong to the best window of pvlm's loop (gamma*), ``vanilla_gamma`` and
    ``vanilla_speedup`` to the best window of vanilla speculative decoding. ``prepared``: theorem 8, with outcomes
    prepared.
    """

    ratio: float
    draft_ms: float
    c: float
    acceptance: float
    gamma: int
    k: int
    speedup: float
    vanilla_gamma: int
    vanilla_speedup: float
    windows: tuple[PlannedWindow, ...]
    prepared: PreparedPlan


class PreparedPlan(msgspec.Struct, frozen=True, kw_only=True):
    """The best ``steps`` (s), ``wait`` (k) and number of prepared windows (``branches``) by theorem 8.

    ``branch_cost``: what each adds to a step of the draft, as a share; ``hit_rates``: how often the target's token is
    the draft's best other one, and one of its two best, where it rejects one.
    """

    steps: int
    wait: int
    branches: int
    speedup: float
    branch_cost: float
    hit_rates: tuple[float, ...]


def plan(figures: PairFigures, gamma_max: int = 16, branch_cost: float = BRANCH_COST) -> list[RatioPlan]:
    """The predictions for windows of 1 to ``gamma_max`` tokens at every prune ratio, ratios ascending.
    ``branch_cost``: see `PreparedPlan`.

    Raises OptionError for figures that are invalid or inconsistent.
    """
    _check(figures, gamma_max)
    if not 0 <= branch_cost < math.inf:
        raise OptionError(f"the cost of a branch is {branch_cost:g}: it must be at least 0")
    return [_plan_ratio(figures, ratio, gamma_max, branch_cost) for ratio in sorted(figures.draft_ms)]


def _plan_ratio(figures: PairFigures, ratio: float, gamma_max: int, branch_cost: float) -> RatioPlan:
    target_ms = MeasuredCurve(figures.target_ms)
    draft_ms, beta = figures.draft_ms[ratio], figures.acceptance[ratio]
    hits = cumulative(HIT_PRIOR)
    outcomes = OutcomeTimes(gamma_max, target_ms, draft_ms, lambda n: draft_ms * (1 + branch_cost * (n - 1)))
    windows = []
    for gamma, prepared in enumerate(outcomes.best_by_steps(beta, hits), 1):
        by_k = [loop_speedup(gamma, k, beta, target_ms, draft_ms, whole_windows=True) for k in range(gamma + 1)]
        highest = max(by_k)
        # Of equal ones the first: rounding must not decide.
        k = next(k for k, speedup in enumerate(by_k) if speedup >= highest * (1 - 1e-12))
        windows.append(
            PlannedWindow(
                gamma=gamma,
                k=k,
                vanilla=vanilla_loop_speedup(gamma, beta, target_ms, draft_ms),
                parallel=by_k[k],
                theorem_7=parallel_speedup(gamma, k, beta, target_ms, draft_ms),
                theorem_8=prepared,
            )
        )
    best = best_window(beta, target_ms, draft_ms, gamma_max, whole_windows=True)
    vanilla = best_vanilla_window(beta, target_ms, draft_ms, gamma_max)
    prepared_best = outcomes.best(beta, hits)
    return RatioPlan(
        ratio=ratio,
        draft_ms=draft_ms,
        c=target_ms(1) / draft_ms,
        acceptance=beta,
        gamma=best.gamma,
        k=best.k,
        speedup=best.speedup,
        vanilla_gamma=vanilla.gamma,
        vanilla_speedup=vanilla.speedup,
        windows=tuple(windows),
        prepared=PreparedPlan(
            steps=prepared_best.steps,
            wait=prepared_best.wait,
            branches=sum(prepared_best.plan),
            speedup=prepared_best.speedup,
            branch_cost=branch_cost,
            hit_rates=hits[1:],
        ),
    )


def _check(figures: PairFigures, gamma_max: int) -> None:
    if not 1 <= gamma_max <= MAX_WINDOW:
        raise OptionError(f"the largest window is {gamma_max}: it must be from 1 to {MAX_WINDOW}")
    if 1 not in figures.target_ms:
        raise OptionError("the target's time for a pass over one token (T_p) is missing")
    if not figures.draft_ms:
        raise OptionError("the draft's time per token (T_q) is missing")
    if wrong := [n for n in figures.target_ms if n < 1]:
        raise OptionError(f"a pass over {wrong[0]} tokens: it must be at least 1")
    for what, times in (("target", figures.target_ms), ("draft", figures.draft_ms)):
        if not_times := [ms for ms in times.values() if not 0 < ms < math.inf]:
            raise OptionError(f"a time of the {what} is {not_times[0]:g} ms: it must be positive")
    for ratio in figures.draft_ms:
        if not 0 <= ratio < 1:
            raise OptionError(f"the prune ratio is {ratio:g}: it must be at least 0 and less than 1")
        if ratio not in figures.acceptance:
            raise OptionError(f"the acceptance rate at prune ratio {ratio:g} is missing")
    for ratio, beta in figures.acceptance.items():
        if ratio not in figures.draft_ms:
            known = ", ".join(f"{known:g}" for known in sorted(figures.draft_ms))
            raise OptionError(
                f"an acceptance rate was given for prune ratio {ratio:g}, but no time of the draft "
                f"(times were given for {known})"
            )
        if not 0 <= beta <= 1:
            raise OptionError(f"the acceptance rate is {beta:g}: it must be from 0 to 1")


async def measure(
    config: EngineConfig,
    video: VideoSource,
    question: str,
    *,
    ratios: Sequence[float] = (0.0, 0.5, 0.9),
    rounds: int = 1,
    options: Mapping[str, Any] | None = None,
    on_progress: OnProgress | None = None,
) -> PairFigures:
    """Measure a pair on one question about one video. ``options``: see `AnswerOptions`.

    beta and T_q come from parallel answers at each prune ratio, so T_q is the draft's time while the target works.
    T_p(1) is the median pass of plain decoding. T_p(n) is the median pass of plain speculative decoding with windows of
    n - 1 tokens, whose passes run over n tokens while the draft rests. If passes are shorter for a larger n, they are
    averaged with their neighbours. All is measured ``rounds`` times; times are medians, and beta counts all tested
    tokens.

    Raises the errors of `Engine.answer`, OptionError for less than one round, and ModelError if the draft was lost or
    an answer was too short.
    """
    if rounds < 1:
        raise OptionError(f"{rounds} rounds: at least 1 is needed")
    given = dict(options or {})
    parallel: dict[float, list[AnswerStats]] = {ratio: [] for ratio in ratios}
    passes = PassTimeEstimate()
    async with Engine.create(config, method="parallel", prefix_cache_bytes=0, on_progress=on_progress) as engine:

        async def stats_of(**how: Any) -> AnswerStats:
            stats = (await engine.answer(video, question, **{**given, **how})).stats
            if stats.draft_lost:
                raise ModelError(f"the draft was lost while it was measured: {stats.draft_lost}")
            return stats

        for _ in range(rounds):
            for ratio, answers in parallel.items():
                answers.append(await stats_of(method="parallel", window=ACCEPTANCE_WINDOW, prune_ratio=ratio))
            await time_passes(passes, stats_of)
    return PairFigures(
        target_ms=passes.points(),
        draft_ms={ratio: median(measured(s.draft_token_ms) for s in answers) for ratio, answers in parallel.items()},
        acceptance={ratio: measured(pooled_acceptance(answers).rate) for ratio, answers in parallel.items()},
    )


async def time_passes(passes: PassTimeEstimate, stats_of: Callable[..., Awaitable[AnswerStats]]) -> None:
    """Time passes of `PASS_SIZES` tokens while the draft rests, once each.

    ``stats_of``: returns the statistics of an answer with the given options.

    Raises ModelError if an answer was too short.
    """
    for n in PASS_SIZES:
        how: dict[str, Any] = {"method": "ar"} if n == 1 else {"method": "sd", "window": n - 1}
        stats = await stats_of(**how, max_tokens=TIMED_TOKENS, ignore_eos=True)
        passes.observe(n, measured(stats.target_pass_ms))
