"""Prepared outcomes: for which verdicts the draft prepares windows, and how fast that is (theorem 8). Imports no torch.

Symbols as in `theory`. While the target verifies a window, the draft takes ``s`` steps over the line and ``n``
branches, each in ``q_B(n)``. A branch is for one of the draft's other tokens (by **rank**) at one offset of the window.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pvlm.speculation.theory import FloatArray, PassTimes, pass_time

HIT_PRIOR = (0.6, 0.475)
"""Probability that a rejection's token is the draft's best other token; and the next best one, if it is not the best.
Measured with the bundled pair."""

COUNTS = (1, 2, 3, 4, 6, 8, 10, 12, 14, 18, 24, 32)
"""Numbers of branches that are considered."""

NEW_BRANCH_COST = 0.02
"""What a branch adds to a step of the draft, as a share of it, before that has been measured."""


def cumulative(conditional: Sequence[float]) -> tuple[float, ...]:
    """``(0, h_1, h_2, ...)``: the probability that a rejection's token is among the draft's best 0, 1, 2, ... others.
    ``conditional``: for each rank that it is that one, if it is none before.
    """
    missed = 1.0
    found = [0.0]
    for chance in conditional:
        missed *= 1 - chance
        found.append(1 - missed)
    return tuple(found)


def plan_outcomes(count: int, beta: float, hits: Sequence[float], size: int) -> tuple[int, ...]:
    """How many other tokens to prepare for at each offset of a window of ``size`` tokens, with at most ``count``
    branches in all: those at the outcomes with the largest probability.

    Offset i is rejected with probability ``beta**i (1 - beta)``, also the offset after the last token. ``hits``: as
    `cumulative` returns.
    """
    plan = [0] * (size + 1)
    for offset in [offset for offset in _ranking(beta, hits, size) if offset <= size][:count]:
        plan[offset] += 1
    return tuple(plan)


def _ranking(beta: float, hits: Sequence[float], size: int) -> list[int]:
    """The offsets of all outcomes up to offset ``size``, the likeliest outcome first."""
    chances = [
        (beta**offset * (hits[rank + 1] - hits[rank]), -offset)
        for offset in range(size + 1)
        for rank in range(len(hits) - 1)
    ]
    return [-offset for _, offset in sorted(chances, reverse=True)]


class BestOutcomes(NamedTuple):
    """``steps`` (s) drafted tokens a window, ``wait`` (k) after a rejection that was not prepared; ``plan``: how many
    other tokens to prepare for at each offset (empty: none); ``speedup``: what theory predicts.
    """

    steps: int
    wait: int
    plan: tuple[int, ...]
    speedup: float


class OutcomeTimes:
    """Theorem 8 for every ``s`` and ``k`` from 1 to ``size``.

    A pass over n drafted tokens commits ``A(n) = 1 + beta + ... + beta**n`` tokens on average. It is followed by

    - n = s, if a token was rejected and its outcome was prepared: ``sum_{i<n} beta**i (1 - beta) H_i``, where ``H_i``
      is the probability that the branches of offset i have the target's token;
    - n = s - 1, if the window was accepted and the target's next token was prepared: ``beta**n (beta + (1-beta) H_n)``;
    - n = k else: a miss.

    Its time is ``max(T_p(n + 1), lag + s q_B)``, and after a miss ``lag + k T_q`` more. After a window that was
    accepted whole the draft was not interrupted, so there is no lag. With the stationary distribution pi of the three
    states ``S = T_p(1) sum(pi A) / sum(pi t)``.

    A branch for the token after a window joins after the first step; a window of s - 1 tokens does not have the last
    offset, and none of its branches.

    ``groups`` as in `LoopTimes`: each pass is followed by ``R = (groups - 1) T_p(n + 1)``, in which the draft goes on.
    """

    def __init__(
        self,
        size: int,
        target_ms: PassTimes,
        draft_ms: float,
        branch_ms: Callable[[int], float],
        lag_ms: float = 0.0,
        step_ms: float | None = None,
        groups: float = 1.0,
    ) -> None:
        """``branch_ms``: q_B by the number of continuations in a step, the line included. ``step_ms``: plain decoding's
        time for a token (None: T_p(1)).
        """
        time = pass_time(target_ms)
        self._size = size
        self._rows = np.arange(size)
        self._target = np.array([groups * time(n + 1) for n in range(size + 1)])
        self._others = self._target * (1 - 1 / groups)
        self._draft_ms = draft_ms
        most = (len(HIT_PRIOR) + 1) * (size + 1)
        self._branch_ms = np.array([branch_ms(branches + 1) for branches in range(max(most, COUNTS[-1]) + 1)])
        self._lag_ms = lag_ms
        self._step_ms = time(1) if step_ms is None else step_ms

    def speedups(
        self,
        beta: float,
        rates: FloatArray,
        branches: int | NDArray[np.int64],
        last: int | NDArray[np.int64] = 0,
    ) -> FloatArray:
        """S for each s (row) and k (column) from 1 on. ``rates``: ``H_i`` for each s (row) and offset,
        ``(..., size, size + 1)``; ``branches``: their number, or one for each s, ``(..., size)``; ``last``: how many of
        them are for the offset after the window's last token. Leading axes are other plans, and stay.
        """
        # Without any miss the loop has no cycle; a miss in a million changes nothing.
        beta, rates = min(beta, 1 - 1e-6), np.minimum(rates, 1 - 1e-6)
        held = beta ** np.arange(self._size + 1)
        row, s = self._rows, self._rows + 1
        tokens = np.cumsum(held)
        rejected = np.zeros_like(rates)
        np.cumsum((held * (1 - beta))[:-1] * rates[..., :-1], axis=-1, out=rejected[..., 1:])
        whole = held * (beta + (1 - beta) * rates)
        # At s, at s - 1, and for each k.
        rejected_s, rejected_1 = rejected[..., row, s, None], rejected[..., row, row, None]
        rejected_k = rejected[..., 1:]
        whole_s, whole_1, whole_k = whole[..., row, s, None], whole[..., row, row, None], whole[..., 1:]
        # The states in terms of the miss, whose weight is 1.
        det = (1 - rejected_s) * (1 - whole_1) - rejected_1 * whole_s
        after_hit = (rejected_k * (1 - whole_1) + rejected_1 * whole_k) / det
        after_whole = ((1 - rejected_s) * whole_k + whole_s * rejected_k) / det
        drafting = self._lag_ms + (s - 1) * self._branch_ms[branches] + self._branch_ms[branches - last]
        unbroken = s * self._branch_ms[branches - last]
        took_s, took_1 = np.maximum(self._target[1:], drafting), np.maximum(self._target[:-1], unbroken)
        miss_ms = np.maximum(0.0, self._lag_ms + s * self._draft_ms - self._others[1:])
        miss_ms = miss_ms + np.maximum(self._target[1:], drafting[..., None])
        committed = after_hit * tokens[1:, None] + after_whole * tokens[:-1, None] + tokens[1:]
        took = after_hit * took_s[..., None] + after_whole * took_1[..., None] + miss_ms
        speedups: FloatArray = self._step_ms * committed / took
        return speedups

    def bound(self, beta: float, hits: Sequence[float]) -> float:
        """All outcomes prepared, at the price of one branch. Where outcomes help, no choice is 2% faster."""
        size = self._size
        return float(self.speedups(beta, np.full((size, size + 1), hits[-1]), 1).max())

    def best(self, beta: float, hits: Sequence[float], counts: Sequence[int] = COUNTS) -> BestOutcomes:
        """The best s, k and number of branches, one of ``counts``. ``hits``: as `cumulative` returns."""
        plans, speedups = self._every(beta, hits, counts)
        count, row, column = np.unravel_index(int(speedups.argmax()), speedups.shape)
        plan = plans[count, row, : row + 2].tolist()
        return BestOutcomes(int(row) + 1, int(column) + 1, tuple(plan), float(speedups[count, row, column]))

    def best_by_steps(self, beta: float, hits: Sequence[float], counts: Sequence[int] = COUNTS) -> list[float]:
        """The speed-up for each s from 1 on, with the best k and number of branches."""
        _, speedups = self._every(beta, hits, counts)
        best: list[float] = speedups.max(axis=(0, 2)).tolist()
        return best

    def _every(self, beta: float, hits: Sequence[float], counts: Sequence[int]) -> tuple[NDArray[np.int64], FloatArray]:
        """For each of ``counts`` and each s: how many other tokens to prepare for at each offset, and S for each k."""
        ranking = np.array(_ranking(beta, hits, self._size))
        # Of each s the outcomes that its windows have, and of these the likeliest: (counts, s, outcomes).
        possible = ranking <= self._rows[:, None] + 1
        chosen = possible & (np.cumsum(possible, axis=1) <= np.array(counts)[:, None, None])
        plans = chosen.astype(float) @ (ranking[:, None] == np.arange(self._size + 1)).astype(float)
        plans = plans.astype(np.int64)
        last = plans[:, self._rows, self._rows + 1]
        return plans, self.speedups(beta, np.array(hits)[plans], plans.sum(axis=2), last)


def outcome_speedup(
    s: int,
    k: int,
    beta: float,
    hit_rate: float,
    target_ms: PassTimes,
    draft_ms: float,
    branch_ms: float,
    lag_ms: float = 0.0,
) -> float:
    """Theorem 8 for one s and k, with the same hit rate at every offset. ``branch_ms``: q_B."""
    size = max(s, k)
    times = OutcomeTimes(size, target_ms, draft_ms, lambda _: branch_ms, lag_ms)
    return float(times.speedups(beta, np.full((size, size + 1), hit_rate), 0)[s - 1, k - 1])
