"""Running estimates of what the choice of a window depends on. Imports no torch."""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Callable

from pvlm.speculation.outcomes import HIT_PRIOR, NEW_BRANCH_COST, cumulative
from pvlm.speculation.theory import MeasuredCurve

HISTORY = 15
"""Number of measurements in a running median."""

FEW = 3
"""With fewer measurements a median is unreliable."""

PRIOR, PRIOR_WEIGHT = 0.8, 4.0
"""Acceptance rate before the first tested token, and how many tokens it counts as."""

USUAL_HALF_LIFE = 100.0
"""Half-life of the acceptance rate that decides whether outcomes are prepared, in tested tokens. Each change of mind
loses what was prepared.
"""

HIT_PRIOR_WEIGHT = 8.0
"""How many rejections the hit rates before the first one count as."""

PACE_TOKENS, FADE_TOKENS = 48.0, 512.0
"""Half-lives of what a `Pace` has measured, in tokens written in its way, and in another one."""

DOUBTED_TOKENS = 16.0
"""So many measured tokens count half in a `Pace`, and the prediction the other half."""

SURE_TOKENS = 24.0
"""So many measured tokens are enough to give up a way that is predicted to be faster."""

SLOWEST = 4.0
"""How much longer than predicted the tokens of a verdict may take in a `Pace`: an interruption is no evidence."""


class RunningMedian:
    """The median of the last `HISTORY` measurements, which one slow pass hardly changes."""

    def __init__(self) -> None:
        self._recent: deque[float] = deque()
        self._sorted: list[float] = []

    def add(self, value: float) -> None:
        if len(self._recent) == HISTORY:
            del self._sorted[bisect_left(self._sorted, self._recent.popleft())]
        self._recent.append(value)
        insort(self._sorted, value)

    @property
    def count(self) -> int:
        return len(self._sorted)

    @property
    def least(self) -> float:
        """Raises IndexError before the first measurement."""
        return self._sorted[0]

    @property
    def value(self) -> float:
        """Raises IndexError before the first measurement."""
        middle = len(self._sorted) // 2
        if len(self._sorted) % 2:
            return self._sorted[middle]
        return (self._sorted[middle - 1] + self._sorted[middle]) / 2


class PassTimeEstimate:
    """T_p(n): a running median for each measured n, made non-decreasing in n."""

    def __init__(self) -> None:
        self._medians: dict[int, RunningMedian] = {}

    def observe(self, n_tokens: int, ms: float) -> None:
        """A pass over ``n_tokens`` new tokens took ``ms``."""
        if n_tokens < 1:
            raise ValueError(f"a pass over {n_tokens} tokens")
        self._medians.setdefault(n_tokens, RunningMedian()).add(_checked_ms(ms))

    @property
    def measured(self) -> bool:
        return bool(self._medians)

    def median(self, n_tokens: int) -> float:
        """The running median at one n in ms. Raises KeyError for an n without a measurement."""
        return self._medians[n_tokens].value

    def medians(self) -> dict[int, float]:
        """n -> running median in ms, as measured."""
        return {n: median.value for n, median in self._medians.items()}

    def points(self) -> dict[int, float]:
        """n -> ms, non-decreasing: weighted isotonic regression, so that the neighbours of a rare n correct an outlier.

        Pool-adjacent-violators: falling medians are replaced by their mean, weighted by the number of measurements. An
        n with fewer than `FEW` measurements counts with its fastest pass, because one slow pass must not keep a policy
        from trying that n again.
        """
        blocks: list[tuple[float, int, list[int]]] = []
        for n, median in sorted(self._medians.items()):
            ms, weight, members = median.least if median.count < FEW else median.value, median.count, [n]
            while blocks and blocks[-1][0] > ms:
                before_ms, before_weight, before_members = blocks.pop()
                total = before_weight + weight
                ms = (before_ms * before_weight + ms * weight) / total
                weight, members = total, before_members + members
            blocks.append((ms, weight, members))
        return {n: ms for ms, _, members in blocks for n in members}

    def curve(self) -> MeasuredCurve:
        """Raises ValueError before the first measurement."""
        return MeasuredCurve(self.points())


class AcceptanceEstimate:
    """beta, the acceptance rate of *tested* tokens, with exponential forgetting.

    A token's weight halves every ``half_life`` tested tokens. So 64 tokens after a change of beta the old beta still
    makes 1/9 of the estimate; the standard error is then at most 0.07. The prior is forgotten in the same way.
    """

    def __init__(self, half_life: float = 20.0) -> None:
        self._decay = 0.5 ** (1 / half_life)
        self._accepted = PRIOR * PRIOR_WEIGHT
        self._rejected = (1 - PRIOR) * PRIOR_WEIGHT

    def observe(self, accepted: int, rejected: int) -> None:
        """``accepted`` tested tokens were accepted, then ``rejected`` (0 or 1 in a verdict) were not.

        Tokens after a rejection were never tested. Counting them would bias beta downwards.
        """
        if accepted < 0 or rejected < 0:
            raise ValueError(f"{accepted} accepted and {rejected} rejected tokens")
        after = self._decay**rejected
        both = after * self._decay**accepted
        self._accepted = self._accepted * both + (after - both) / (1 - self._decay)
        self._rejected = self._rejected * both + (1 - after) / (1 - self._decay)

    @property
    def value(self) -> float:
        """In (0, 1)."""
        return self._accepted / (self._accepted + self._rejected)


class HitEstimate:
    """The probability that a rejection's token is the draft's best other token, or a later one, with forgetting.

    For each rank it is the chance among the rejections that no earlier rank has met.
    """

    def __init__(self, half_life: float = 40.0) -> None:
        self._decay = 0.5 ** (1 / half_life)
        self._met = [chance * HIT_PRIOR_WEIGHT for chance in HIT_PRIOR]
        self._missed = [(1 - chance) * HIT_PRIOR_WEIGHT for chance in HIT_PRIOR]

    def observe(self, rank: int | None, prepared: int) -> None:
        """``prepared`` ranks were prepared at the rejected position; ``rank`` had the token (None: none had it)."""
        for place in range(min(prepared, len(self._met)) if rank is None else min(rank + 1, len(self._met))):
            self._met[place] = self._met[place] * self._decay + (place == rank)
            self._missed[place] = self._missed[place] * self._decay + (place != rank)

    @property
    def hits(self) -> tuple[float, ...]:
        """As `pvlm.speculation.outcomes.cumulative` returns."""
        return cumulative([met / (met + missed) for met, missed in zip(self._met, self._missed, strict=True)])


class Pace:
    """How fast draft and target really were, compared with a prediction. Forgets, and doubts a few tokens."""

    def __init__(self) -> None:
        self._tokens = self._expected_ms = self._took_ms = 0.0

    def observe(self, tokens: int, expected_ms: float, took_ms: float) -> None:
        """``tokens`` tokens were expected in ``expected_ms``. An interruption counts as `SLOWEST` times that."""
        self._forget(0.5 ** (tokens / PACE_TOKENS))
        self._tokens += tokens
        self._expected_ms += expected_ms
        self._took_ms += min(took_ms, SLOWEST * expected_ms)

    def fade(self, tokens: int) -> None:
        """The target wrote so many tokens in another way, so the measurements are older."""
        self._forget(0.5 ** (tokens / FADE_TOKENS))

    def _forget(self, keep: float) -> None:
        self._tokens *= keep
        self._expected_ms *= keep
        self._took_ms *= keep

    @property
    def known(self) -> bool:
        """Whether a token or more is remembered."""
        return self._tokens >= 1

    @property
    def sure(self) -> bool:
        """Whether enough is remembered to speak against a prediction. After a while in other ways it is not."""
        return self._tokens >= SURE_TOKENS

    @property
    def factor(self) -> float:
        """By which a prediction is to be multiplied; 1 before the first token."""
        if self._took_ms <= 0 or self._expected_ms <= 0:
            return 1.0
        return float((self._expected_ms / self._took_ms) ** (self._tokens / (self._tokens + DOUBTED_TOKENS)))


class Estimates:
    """Measured T_p(n), T_q, beta, and the times between passes. Times in ms.

    The lag lasts from a verdict that the draft waits for to the start of its new window, the transit from the end of a
    window that the target waits for to its pass. The coordination is the time between two passes without any wait.
    ``sessions``: how many the target decodes at the moment; ``shared``: in passes that they share.
    """

    def __init__(self) -> None:
        self.passes = PassTimeEstimate()
        self._sharing = RunningMedian()
        self.draft = RunningMedian()
        self.lag = RunningMedian()
        self.transit = RunningMedian()
        self.coordination = RunningMedian()
        self._steps: dict[int, RunningMedian] = {}
        self.sessions = 1
        self.shared = True
        self.acceptance = AcceptanceEstimate()
        self.usual_acceptance = AcceptanceEstimate(USUAL_HALF_LIFE)
        self.branches = PassTimeEstimate()
        self.hits = HitEstimate()

    @property
    def timed(self) -> bool:
        """Whether both models have been measured."""
        return self.draft.count > 0 and self.passes.measured

    def observe_pass(self, n_tokens: int, ms: float) -> None:
        self.passes.observe(n_tokens, ms)

    def observe_sharing(self, n_tokens: int, own_tokens: int) -> None:
        self._sharing.add(max(1.0, n_tokens / own_tokens))

    @property
    def sharing(self) -> float:
        """Tokens of a pass for each one of a session: with each token more of its own, the other sessions that share
        the pass have one more too. 1 before the first measurement, and for a session alone.
        """
        return self._sharing.value if self._sharing.count and self.sessions > 1 and self.shared else 1.0

    def observe_draft(self, ms_per_token: float) -> None:
        self.draft.add(_checked_ms(ms_per_token))

    def observe_lag(self, ms: float) -> None:
        self.lag.add(_checked_ms(ms))

    def observe_transit(self, ms: float) -> None:
        self.transit.add(_checked_ms(ms))

    def observe_coordination(self, ms: float) -> None:
        self.coordination.add(_checked_ms(ms))

    def observe_step(self, ms: float) -> None:
        """While the draft rests in all sessions, a token of each takes ``ms``, coordination included."""
        self._steps.setdefault(self.sessions, RunningMedian()).add(_checked_ms(ms))

    def observe_branches(self, beside: float, ms: float) -> None:
        """A step of the draft over the line and ``beside`` branches took ``ms``."""
        self.branches.observe(round(beside) + 1, _checked_ms(ms))

    def branch_ms(self) -> Callable[[int], float]:
        """q_B: the time of a step by its number of continuations, the line included. Raises IndexError before the first
        measurement of the draft.
        """
        alone = self.draft.value
        if not self.branches.measured:
            return lambda continuations: alone * (1 + NEW_BRANCH_COST * (continuations - 1))
        return MeasuredCurve({1: alone, **{n: max(ms, alone) for n, ms in self.branches.points().items()}})

    @property
    def coordination_ms(self) -> float:
        """0 before the first measurement."""
        return self.coordination.value if self.coordination.count else 0.0

    @property
    def lag_ms(self) -> float:
        """Lag and transit; 0 before the first measurement."""
        return sum(median.value for median in (self.lag, self.transit) if median.count)

    @property
    def groups(self) -> float:
        """The sessions in so many groups take turns at the target; those of a group share its passes."""
        return max(1.0, self.sessions / self.sharing)

    @property
    def steps(self) -> int:
        """How many steps of plain decoding have been measured."""
        return sum(step.count for step in self._steps.values())

    @property
    def step_ms(self) -> float | None:
        """Plain decoding's time for a token of each session; None before the first measurement.

        It is taken from the nearest number of sessions that was measured, and corrected by the times of the passes;
        where sessions have passes of their own, by how many these are.
        """
        if not self._steps:
            return None
        nearest = min(self._steps, key=lambda measured: abs(measured - self.sessions))
        step_ms = self._steps[nearest].value
        if not self.shared:
            return step_ms * self.sessions / nearest
        if nearest == self.sessions:
            return step_ms
        curve = self.passes.curve()
        return max(step_ms + curve(self.sessions) - curve(nearest), curve(self.sessions))

    def observe_tested(self, accepted: int, rejected: int) -> None:
        self.acceptance.observe(accepted, rejected)
        self.usual_acceptance.observe(accepted, rejected)


def _checked_ms(ms: float) -> float:
    """Return ``ms``, and a nanosecond for 0: a clock may be too coarse for a short pass."""
    if not 0 <= ms < math.inf:
        raise ValueError(f"a duration of {ms} ms")
    return max(ms, 1e-6)
