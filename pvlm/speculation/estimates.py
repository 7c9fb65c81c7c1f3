"""Running estimates of what the choice of a window depends on. Imports no torch."""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections import deque

from pvlm.speculation.theory import MeasuredCurve

HISTORY = 15
"""Measurements that a running median looks back on."""


FEW = 3
"""Measurements below which a median says little."""


class RunningMedian:
    """The median of the last `HISTORY` measurements: one slow pass among them changes nothing."""

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
    """T_p(n): a running median for each n that was seen, made non-decreasing in n."""

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
        """The running median at one n in ms. Raises KeyError for an n that was never seen."""
        return self._medians[n_tokens].value

    def medians(self) -> dict[int, float]:
        """n -> running median in ms, as measured."""
        return {n: median.value for n, median in self._medians.items()}

    def points(self) -> dict[int, float]:
        """n -> ms, non-decreasing: weighted isotonic regression, so a slow outlier at a rare n yields to its
        neighbours.

        Pool-adjacent-violators: medians that fall are replaced by their mean, weighted by how often each n was seen.
        Until an n was seen `FEW` times its fastest pass stands for it: a slow one must not keep it from being tried
        again.
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

    A token's weight halves every ``half_life`` tested tokens, so 64 tokens after a change of beta 1/9 of the estimate
    is still the old one; its standard error is then at most 0.07. The prior, ``prior_weight`` tokens at rate ``prior``,
    is forgotten likewise.
    """

    def __init__(self, prior: float = 0.8, prior_weight: float = 4.0, half_life: float = 20.0) -> None:
        self._decay = 0.5 ** (1 / half_life)
        self._accepted = prior * prior_weight
        self._rejected = (1 - prior) * prior_weight

    def observe(self, accepted: int, rejected: int) -> None:
        """``accepted`` tokens were tested and held, then ``rejected`` (0 or 1 in a verdict) did not.

        Tokens behind a rejection were never tested and must not be counted: they would pull beta down.
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


class Estimates:
    """T_p(n), T_q, beta, the lag (how long after a rejection the draft starts anew) and the coordination (what a pass
    over a window costs on top), as measured. Times in ms.
    """

    def __init__(self) -> None:
        self.passes = PassTimeEstimate()
        self.draft = RunningMedian()
        self.lag = RunningMedian()
        self.coordination = RunningMedian()
        self.acceptance = AcceptanceEstimate()

    @property
    def timed(self) -> bool:
        """Whether both models have been measured."""
        return self.draft.count > 0 and self.passes.measured

    def observe_pass(self, n_tokens: int, ms: float) -> None:
        self.passes.observe(n_tokens, ms)

    def observe_draft(self, ms_per_token: float) -> None:
        self.draft.add(_checked_ms(ms_per_token))

    def observe_lag(self, ms: float) -> None:
        self.lag.add(_checked_ms(ms))

    def observe_coordination(self, ms: float) -> None:
        self.coordination.add(_checked_ms(ms))

    @property
    def coordination_ms(self) -> float:
        """0 before it was measured."""
        return self.coordination.value if self.coordination.count else 0.0

    @property
    def lag_ms(self) -> float:
        """0 before it was measured."""
        return self.lag.value if self.lag.count else 0.0

    def observe_tested(self, accepted: int, rejected: int) -> None:
        self.acceptance.observe(accepted, rejected)


def _checked_ms(ms: float) -> float:
    """A clock may be too coarse to see a short pass: 0 reads as a nanosecond."""
    if not 0 <= ms < math.inf:
        raise ValueError(f"a duration of {ms} ms")
    return max(ms, 1e-6)
