"""Predicted speed-up of speculative decoding over plain decoding. Imports no torch.

Symbols: ``c`` = T_p / T_q; ``beta``: probability that a *tested* drafted token is accepted, independent from token to
token; ``gamma``: window; ``k`` (wait): drafted tokens that the target waits for after a rejection; ``target_ms``:
T_p(n), the target's time for a pass over n new tokens; ``draft_ms``: T_q, the draft's time for one token. Plain
decoding takes T_p(1) for a token. The theorems are those of ParallelVLM (2603.19610), with acceptance written beta;
`theorems` has the ones that the product does not call.

The theorems have ``(1 - beta**n) / (1 - beta)`` where the code has the sum ``1 + beta + ... + beta**(n - 1)``. Both are
equal for beta < 1, and the sum is the limit, n, at beta = 1. So every function takes beta from 0 to 1, both included.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

PassTimes = float | Mapping[int, float] | Callable[[int], float]
"""T_p(n) in ms: flat, measured at some n (see `MeasuredCurve`), or a function."""

FloatArray = NDArray[np.float64]


class MeasuredCurve:
    """T_p(n) from measurements at some n: linear between them, and flat below the smallest n.

    Above the largest n it continues with the slope from the smallest to the largest, or flat if that slope is negative.
    (The slope of the last segment alone would extrapolate its noise.) Raises ValueError without a measurement, or if
    one is not positive and finite.
    """

    def __init__(self, points: Mapping[int, float]) -> None:
        if not points or not all(n >= 1 and 0 < ms < math.inf for n, ms in points.items()):
            raise ValueError(f"pass times must be positive, over at least 1 token, and at least one: {dict(points)}")
        self._n = sorted(points)
        self._ms = [points[n] for n in self._n]
        span = self._n[-1] - self._n[0]
        self._slope = max(0.0, (self._ms[-1] - self._ms[0]) / span) if span else 0.0

    def __call__(self, n: int) -> float:
        right = bisect_left(self._n, n)
        if right == 0:
            return self._ms[0]
        if right == len(self._n):
            return self._ms[-1] + self._slope * (n - self._n[-1])
        n0, n1 = self._n[right - 1], self._n[right]
        ms0, ms1 = self._ms[right - 1], self._ms[right]
        return ms0 + (ms1 - ms0) * (n - n0) / (n1 - n0)


def pass_time(target_ms: PassTimes) -> Callable[[int], float]:
    """T_p as a function."""
    if isinstance(target_ms, Mapping):
        return MeasuredCurve(target_ms)
    if callable(target_ms):
        return target_ms
    flat = float(target_ms)
    return lambda n: flat


def geometric_sum(beta: float, n: int) -> float:
    """``1 + beta + ... + beta**(n - 1)``, by Horner's rule."""
    total = 0.0
    for _ in range(n):
        total = total * beta + 1
    return total


def acceptance_from_length(mean_accepted_length: float) -> float:
    """beta from the paper's M, accepted tokens per rejection across windows: ``M = beta / (1 - beta)``."""
    return mean_accepted_length / (1 + mean_accepted_length)


# ---- the paper's theorems -----------------------------------------------------------------------------------------


def vanilla_speedup(gamma: int, beta: float, c: float) -> float:
    """Theorem 4: draft, then verify, with a bonus token (Leviathan et al. 2211.17192, theorem 3.8).

    ``(1 - beta**(gamma + 1)) / ((1 - beta)(gamma / c + 1))``; at beta = 1 ``(gamma + 1) / (gamma / c + 1)``.
    """
    check_window(gamma, 0, beta)
    return geometric_sum(beta, gamma + 1) / (gamma / c + 1)


def parallel_speedup(gamma: int, k: int, beta: float, target_ms: PassTimes, draft_ms: float) -> float:
    """Theorem 7: after a rejection the target waits for k drafted tokens and passes over them and the corrected one.

    ``T_p(1)/(1 - beta) / [k T_q + T_p(k+1) + beta**(k+1)/(1 - beta**gamma) * max(T_p(gamma), gamma T_q)]``; at beta = 1
    ``gamma T_p(1) / max(T_p(gamma), gamma T_q)``. For k = 0 this is theorem 6 without the barrier at the solo step.
    """
    check_window(gamma, k, beta)
    time = pass_time(target_ms)
    first = k * draft_ms + time(k + 1)
    window = max(time(gamma), gamma * draft_ms)
    return time(1) / ((1 - beta) * first + beta ** (k + 1) / geometric_sum(beta, gamma) * window)


def best_parallel_speedup(beta: float, target_ms: PassTimes, draft_ms: float, gamma_max: int) -> float:
    """The best speed-up by theorem 7 of all ``1 <= gamma <= gamma_max`` and ``0 <= k <= gamma``."""
    return max(
        parallel_speedup(gamma, k, beta, target_ms, draft_ms)
        for gamma in range(1, gamma_max + 1)
        for k in range(gamma + 1)
    )


# ---- the loop as it runs ------------------------------------------------------------------------------------------


def loop_speedup(
    gamma: int,
    k: int,
    beta: float,
    target_ms: PassTimes,
    draft_ms: float,
    *,
    whole_windows: bool = False,
) -> float:
    """Speed-up of the loop without barriers, as `LoopTimes` has it, for one gamma and k and without a lag.

    Equal to theorem 7 if T_p is flat and ``T_q <= T_p``, and if ``gamma T_q <= T_p(k + 1)``.
    """
    check_window(gamma, k, beta)
    return LoopTimes([gamma], [k], target_ms, draft_ms).best(beta, whole_windows=whole_windows).speedup


ROUNDING = 1e-12
"""Rounding must not decide between equals."""


class BestWindow(NamedTuple):
    """A window, the tokens to wait for after a rejection, and the speed-up that theory predicts for them."""

    gamma: int
    k: int
    speedup: float


class LoopTimes:
    """Times of the loop for every ``gamma`` and ``k`` of two lists.

    The constructor computes what does not depend on beta, so that each beta costs a few operations on arrays of shape
    ``(len(gammas), len(ks))``.

    A cycle lasts from one rejection to the next, and commits ``1 / (1 - beta)`` tokens on average. At time 0 a verdict
    rejects: the target holds a corrected token, and the draft stops in the middle of a window. ``lag_ms`` later (the
    way of the messages, and the token that it was computing) the draft begins its new window. There is no barrier, so
    it has its i-th token at ``lag + i q``, as long as it is at most one full window beyond the one in verification.
    ``T = T_p(gamma)``, ``q = T_q``.

    - Pass 0 runs over the corrected token and x1 ... xk. It ends at ``e0 = lag + k q + T_p(k + 1)``, for k = 0 at
      ``e0 = T_p(1)``, and settles x1 ... xk.
    - The target then holds the distribution of the next drafted token, and settles that token as soon as it arrives, at
      ``v0 = max(e0, lag + (k + 1) q)``. With ``whole_windows`` a token arrives only with its window: ``v0 = s1``.
    - Pass 1 runs over the first full window. It starts at ``s1 = max(e0, lag + (k + gamma) q)``, ends at ``s1 + T``,
      and settles tokens 2 ... gamma of its window. The first token of the next window is settled ``w`` later: ``w =
      max(0, q - T)``, with whole windows ``max(0, gamma q - T)``.
    - At s1 the draft is exactly at the end of window 1, which is complete: its lead allows no more. So the next pass
      starts ``P = max(T, gamma q)`` later, and so on: s1, s1 + P, s1 + 2 P, ...

    A cycle that reaches pass j >= 1 has had ``k + 1 + (j - 1) gamma`` acceptances. The mean over the points at which it
    can end:

        E = e0 + beta^k (v0 - e0) + beta^(k+1) [(s1 + T - v0) + beta^(gamma-1) w]
               + beta^(k+1+gamma) / (1 - beta^gamma) [(P - w) + beta^(gamma-1) w]

    For a flat ``T_p >= T_q`` this is theorem 7, because there the first bracket is P.

    Sessions in ``groups`` groups take turns at the target, and those of a group share its passes. While the others have
    theirs, for ``R = (groups - 1) T``, the draft goes on: a pass begins R after the last one at the earliest. A token
    whose distribution the target holds needs no pass, and does not wait for theirs.
    """

    def __init__(
        self,
        gammas: Sequence[int],
        ks: Sequence[int],
        target_ms: PassTimes,
        draft_ms: float,
        lag_ms: float = 0.0,
        step_ms: float | None = None,
        groups: float = 1.0,
    ) -> None:
        """``step_ms``: plain decoding's time for a token (None: T_p(1))."""
        time = pass_time(target_ms)
        self._gamma, self._k = np.array(gammas)[:, None], np.array(ks)[None, :]
        self._impossible = self._k > self._gamma
        self._step_ms = time(1) if step_ms is None else step_ms
        self._target = np.array([[time(n)] for n in gammas])
        others = (groups - 1) * self._target
        first = np.array([[time(n + 1) for n in ks]])
        self._first_end = np.maximum(others, np.where(self._k > 0, lag_ms + self._k * draft_ms, 0.0)) + first
        self._window_settled = np.maximum(self._first_end, lag_ms + (self._k + self._gamma) * draft_ms)
        self._window_start = np.maximum(self._first_end + others, self._window_settled)
        self._token_settled = np.maximum(self._first_end, lag_ms + (self._k + 1) * draft_ms)
        self._period = np.maximum(self._target + others, self._gamma * draft_ms)
        self._late_token = np.maximum(0.0, draft_ms - self._target)
        self._late_window = np.maximum(0.0, self._gamma * draft_ms - self._target)

    def cycle_ms(self, beta: float, *, whole_windows: bool) -> FloatArray:
        """Mean time E of a cycle, ``(len(gammas), len(ks))``, for beta < 1."""
        head, repeated = self._cycles(beta, whole_windows)
        cycle: FloatArray = head + repeated / (1 - beta**self._gamma)
        return cycle

    def _cycles(self, beta: float, whole_windows: bool) -> tuple[FloatArray, FloatArray]:
        """E in two parts, also finite at beta = 1: E is the first plus the second over ``1 - beta**gamma``."""
        settled, late = self._token_settled, self._late_token
        if whole_windows:
            settled, late = self._window_settled, self._late_window
        late_if_reached = beta ** (self._gamma - 1) * late
        waited = beta**self._k
        head = self._first_end + waited * (settled - self._first_end)
        head = head + beta * waited * (self._window_start + self._target - settled + late_if_reached)
        repeated = beta * waited * beta**self._gamma * (self._period - late + late_if_reached)
        return head, repeated

    def speedups(self, beta: float, *, whole_windows: bool) -> FloatArray:
        """Speed-ups over plain decoding, ``T_p(1) / (1 - beta) / E`` with its limit at beta = 1; 0 if ``k > gamma``."""
        head, repeated = self._cycles(beta, whole_windows)
        longest = int(self._gamma.max())
        sums = np.cumsum(beta ** np.arange(longest))[self._gamma - 1]
        speedups: FloatArray = self._step_ms / ((1 - beta) * head + repeated / sums)
        speedups[self._impossible] = 0.0
        return speedups

    def best(self, beta: float, *, whole_windows: bool, nearly: float = ROUNDING) -> BestWindow:
        """The first gamma, then the first k, of those whose speed-up is at most ``nearly`` (a share) below the best."""
        speedups = self.speedups(beta, whole_windows=whole_windows)
        row, column = divmod(int(np.argmax(speedups >= speedups.max() * (1 - nearly))), speedups.shape[1])
        return BestWindow(int(self._gamma[row, 0]), int(self._k[0, column]), float(speedups[row, column]))


def window_grid(gamma_max: int, k_max: int | None = None) -> tuple[range, range]:
    """Every gamma up to ``gamma_max``, and every k up to ``k_max`` (None: up to ``gamma_max``)."""
    return range(1, gamma_max + 1), range(min(gamma_max, gamma_max if k_max is None else k_max) + 1)


def best_window(
    beta: float,
    target_ms: PassTimes,
    draft_ms: float,
    gamma_max: int,
    k_max: int | None = None,
    *,
    whole_windows: bool = False,
) -> BestWindow:
    """The best of all ``1 <= gamma <= gamma_max`` and ``0 <= k <= min(k_max, gamma)`` by `loop_speedup`.

    Of equal ones the smallest gamma, then the smallest k. At a speed-up below 1 plain decoding is faster.
    """
    check_window(gamma_max, 0, beta)
    return LoopTimes(*window_grid(gamma_max, k_max), target_ms, draft_ms).best(beta, whole_windows=whole_windows)


def vanilla_loop_speedup(
    gamma: int,
    beta: float,
    target_ms: PassTimes,
    draft_ms: float,
    lag_ms: float = 0.0,
    step_ms: float | None = None,
    groups: float = 1.0,
) -> float:
    """Theorem 4 with a measured T_p(n): the speed-up of plain speculative decoding (draft, then verify).

    A round takes ``lag_ms + gamma T_q + T_p(gamma + 1)``, because its pass also covers the token before the window.
    ``lag_ms``: what both ways of the messages take; ``step_ms`` and ``groups`` as in `LoopTimes`.
    """
    check_window(gamma, 0, beta)
    time = pass_time(target_ms)
    step = time(1) if step_ms is None else step_ms
    wait_ms = max(lag_ms + gamma * draft_ms, (groups - 1) * time(gamma + 1))
    return geometric_sum(beta, gamma + 1) * step / (wait_ms + time(gamma + 1))


def best_vanilla_window(
    beta: float,
    target_ms: PassTimes,
    draft_ms: float,
    gamma_max: int,
    lag_ms: float = 0.0,
    step_ms: float | None = None,
    groups: float = 1.0,
    nearly: float = ROUNDING,
) -> BestWindow:
    """The smallest window up to ``gamma_max`` whose `vanilla_loop_speedup` is at most ``nearly`` (a share) below the
    best.
    """
    check_window(gamma_max, 0, beta)
    time = pass_time(target_ms)
    speedups = [
        vanilla_loop_speedup(gamma, beta, time, draft_ms, lag_ms, step_ms, groups) for gamma in range(1, gamma_max + 1)
    ]
    enough = max(speedups) * (1 - nearly)
    best = next(index for index, speedup in enumerate(speedups) if speedup >= enough)
    return BestWindow(best + 1, 0, speedups[best])


def check_window(gamma: int, k: int, beta: float) -> None:
    """Raises ValueError for a gamma, k or beta outside its range."""
    if gamma < 1 or not 0 <= k <= gamma:
        raise ValueError(f"gamma is {gamma} and k is {k}: a window has at least 1 token, and 0 <= k <= gamma")
    if not 0 <= beta <= 1:
        raise ValueError(f"beta is {beta}: an acceptance rate is in [0, 1]")
