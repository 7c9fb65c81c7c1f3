"""Speed-up of speculative decoding over plain decoding, by the paper's theorems and past them. Imports no torch.

Symbols: ``c`` = T_p / T_q; ``beta``: probability that a drafted token *that is tested* is accepted, independent from
token to token; ``gamma``: window; ``k`` (wait): drafted tokens that the target waits for after a rejection;
``target_ms``: T_p(n), the target's time for a pass over n new tokens; ``draft_ms``: T_q, the draft's time for one
token. A speed-up is against plain decoding, one token per T_p(1). Theorems 1 to 6 are those of ParallelVLM
(2603.19610), with acceptance written beta.

Sums ``1 + beta + ... + beta**(n - 1)`` stand where the theorems have ``(1 - beta**n) / (1 - beta)``: the same for beta
< 1, and its limit n at beta = 1. So every function takes beta from 0 to 1, both included.
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
    """T_p(n) from measurements at some n: linear between them, and flat below the smallest.

    Above the largest it goes on with the slope from the smallest to the largest (a last segment alone would carry its
    noise far out), and never falls. Raises ValueError without a measurement, or where one is not positive and finite.
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
    """T_p as a function, whichever way it was given."""
    if isinstance(target_ms, Mapping):
        return MeasuredCurve(target_ms)
    if callable(target_ms):
        return target_ms
    flat = float(target_ms)
    return lambda n: flat


def geometric_sum(beta: float, n: int) -> float:
    """``1 + beta + ... + beta**(n - 1)``, summed from the small end (Horner)."""
    total = 0.0
    for _ in range(n):
        total = total * beta + 1
    return total


def acceptance_from_length(mean_accepted_length: float) -> float:
    """beta from the paper's M: accepted tokens per rejection, across windows, so ``M = beta / (1 - beta)``."""
    return mean_accepted_length / (1 + mean_accepted_length)


def accepted_length(beta: float) -> float:
    """M from beta; infinite at beta = 1."""
    return beta / (1 - beta) if beta < 1 else math.inf


# ---- the paper's theorems -----------------------------------------------------------------------------------------


def ideal_speedup(average_acceptance: float, c: float) -> float:
    """Theorem 1: ``tau * c``, at most c. ``average_acceptance`` (tau) in [0, 1]."""
    return min(max(average_acceptance, 0.0), 1.0) * c


def vanilla_speedup_ideal(gamma: int, c: float) -> float:
    """Theorem 2: draft, then verify, everything accepted, no bonus token: ``gamma c / (gamma + c)``."""
    return gamma * c / (gamma + c)


def parallel_speedup_ideal(gamma: int, c: float) -> float:
    """Theorem 3: draft while verifying, everything accepted: ``min(gamma, c)``, best at gamma = c."""
    return min(float(gamma), c)


def vanilla_speedup(gamma: int, beta: float, c: float) -> float:
    """Theorem 4: draft, then verify, with a bonus token (Leviathan et al. 2211.17192, Theorem 3.8).

    ``(1 - beta**(gamma + 1)) / ((1 - beta)(gamma / c + 1))``; at beta = 1 ``(gamma + 1) / (gamma / c + 1)``.
    """
    _check(gamma, 0, beta)
    return geometric_sum(beta, gamma + 1) / (gamma / c + 1)


def parallel_speedup_free(gamma: int, beta: float, c: float) -> float:
    """Theorem 5: draft while verifying, rollback free: ``(1 - beta**gamma)/(1 - beta) * T_p / max(gamma T_q, T_p)``."""
    _check(gamma, 0, beta)
    return geometric_sum(beta, gamma) / max(gamma / c, 1.0)


def parallel_speedup_barrier(gamma: int, beta: float, c: float) -> float:
    """Theorem 6: the loop with rollback and k = 0, each step of it, the solo step too, as long as ``max(T_p, gamma
    T_q)``.

    ``[1 / (1 - beta)] / [1 + beta / (1 - beta**gamma)] * T_p / max(T_p, gamma T_q)``; at beta = 1 theorem 3. Exact for
    ``gamma T_q <= T_p``, else a lower bound.
    """
    _check(gamma, 0, beta)
    return 1 / ((1 - beta) + beta / geometric_sum(beta, gamma)) / max(1.0, gamma / c)


def parallel_speedup(gamma: int, k: int, beta: float, target_ms: PassTimes, draft_ms: float) -> float:
    """Theorem 7: after a rejection the target waits for k drafted tokens and takes them in with the corrected one.

    ``T_p(1)/(1 - beta) / [k T_q + T_p(k+1) + beta**(k+1)/(1 - beta**gamma) * max(T_p(gamma), gamma T_q)]``; at beta = 1
    ``gamma T_p(1) / max(T_p(gamma), gamma T_q)``. k = 0 is theorem 6, but for the barrier at the solo step.
    """
    _check(gamma, k, beta)
    time = pass_time(target_ms)
    first = k * draft_ms + time(k + 1)
    window = max(time(gamma), gamma * draft_ms)
    return time(1) / ((1 - beta) * first + beta ** (k + 1) / geometric_sum(beta, gamma) * window)


# ---- the loop as it runs ------------------------------------------------------------------------------------------


def loop_speedup(
    gamma: int,
    k: int,
    beta: float,
    target_ms: PassTimes,
    draft_ms: float,
    *,
    whole_windows: bool = False,
    lag_ms: float = 0.0,
) -> float:
    """Speed-up of the loop without barriers: ``T_p(1) / (1 - beta)`` over `cycle_ms`, with its limit at beta = 1.

    Equal to theorem 7 where T_p is flat and ``T_q <= T_p``, and where ``gamma T_q <= T_p(k + 1)``.
    """
    _check(gamma, k, beta)
    return LoopTimes([gamma], [k], target_ms, draft_ms, lag_ms).best(beta, whole_windows=whole_windows).speedup


def cycle_ms(
    gamma: int,
    k: int,
    beta: float,
    target_ms: PassTimes,
    draft_ms: float,
    *,
    whole_windows: bool = False,
    lag_ms: float = 0.0,
) -> float:
    """Mean time from rejection to rejection, in which the loop commits ``1 / (1 - beta)`` tokens (beta 1: infinite).

    Time 0 is a verdict that rejects: the target holds a corrected token, and the draft, which the verdict stops in the
    middle of a window, starts anew, ``lag_ms`` later (the messages' way, and the token that it was in the middle of).
    Without a barrier it has written its i-th token at ``lag + i q``, as long as it is at most one full window beyond
    the one in verification. ``T = T_p(gamma)``, ``q = T_q``.

    - Pass 0 takes in the corrected token and x1 ... xk. It ends at ``e0 = lag + k q + T_p(k + 1)``, for k = 0 at
      ``e0 = T_p(1)``, and settles x1 ... xk.
    - Holding the distribution for the next drafted token, the target settles that one as soon as it is there, at
      ``v0 = max(e0, lag + (k + 1) q)``; with ``whole_windows``, where a token travels only with its window, at
      ``v0 = s1``.
    - Pass 1 takes in the first full window. It starts at ``s1 = max(e0, lag + (k + gamma) q)``, ends at ``s1 + T``,
      settles tokens 2 ... gamma of its window. The first of the next window is settled ``w`` later: ``w = max(0, q -
      T)``, with whole windows ``max(0, gamma q - T)``.
    - At s1 the draft stands exactly at the end of window 1: its lead lets it no further, the window is whole. So the
      next pass starts ``P = max(T, gamma q)`` later, and so on: s1, s1 + P, s1 + 2 P, ...

    A cycle that reaches pass j >= 1 has had ``k + 1 + (j - 1) gamma`` acceptances. Over the points where it can end:

        E = e0 + beta^k (v0 - e0) + beta^(k+1) [(s1 + T - v0) + beta^(gamma-1) w]
               + beta^(k+1+gamma) / (1 - beta^gamma) [(P - w) + beta^(gamma-1) w]

    For a flat ``T_p >= T_q`` this is theorem 7, for there the first bracket is P. So theorem 7 has no barrier left in
    it; only theorem 6 has, at the solo step.
    """
    _check(gamma, k, beta)
    if beta == 1:
        return math.inf
    return float(LoopTimes([gamma], [k], target_ms, draft_ms, lag_ms).cycle_ms(beta, whole_windows=whole_windows)[0, 0])


class BestWindow(NamedTuple):
    """A window, the tokens to wait for after a rejection, and the speed-up that theory predicts for them."""

    gamma: int
    k: int
    speedup: float


class LoopTimes:
    """The loop's times for every ``gamma`` and ``k`` of two lists, as `cycle_ms` has them: all that does not depend on
    beta, so that another beta costs a few operations on ``(len(gammas), len(ks))``.

    ``target_ms``, ``draft_ms`` and ``lag_ms`` as in `cycle_ms`.
    """

    def __init__(
        self, gammas: Sequence[int], ks: Sequence[int], target_ms: PassTimes, draft_ms: float, lag_ms: float = 0.0
    ) -> None:
        time = pass_time(target_ms)
        self._gamma, self._k = np.array(gammas)[:, None], np.array(ks)[None, :]
        self._impossible = self._k > self._gamma
        self._step_ms = time(1)
        self._target = np.array([[time(n)] for n in gammas])
        first = np.array([[time(n + 1) for n in ks]])
        self._first_end = np.where(self._k > 0, lag_ms + self._k * draft_ms, 0.0) + first
        self._window_start = np.maximum(self._first_end, lag_ms + (self._k + self._gamma) * draft_ms)
        self._token_settled = np.maximum(self._first_end, lag_ms + (self._k + 1) * draft_ms)
        self._period = np.maximum(self._target, self._gamma * draft_ms)
        self._late_token = np.maximum(0.0, draft_ms - self._target)
        self._late_window = np.maximum(0.0, self._gamma * draft_ms - self._target)

    def cycle_ms(self, beta: float, *, whole_windows: bool) -> FloatArray:
        """`cycle_ms` of each, for beta < 1."""
        head, repeated = self._cycles(beta, whole_windows)
        cycle: FloatArray = head + repeated / (1 - beta**self._gamma)
        return cycle

    def _cycles(self, beta: float, whole_windows: bool) -> tuple[FloatArray, FloatArray]:
        """`cycle_ms` in two parts, finite at beta = 1 too: the second is still to be divided by ``1 - beta**gamma``."""
        settled, late = self._token_settled, self._late_token
        if whole_windows:
            settled, late = self._window_start, self._late_window
        late_if_reached = beta ** (self._gamma - 1) * late
        waited = beta**self._k
        head = self._first_end + waited * (settled - self._first_end)
        head = head + beta * waited * (self._window_start + self._target - settled + late_if_reached)
        repeated = beta * waited * beta**self._gamma * (self._period - late + late_if_reached)
        return head, repeated

    def speedups(self, beta: float, *, whole_windows: bool) -> FloatArray:
        """Against plain decoding; 0 where ``k > gamma``."""
        head, repeated = self._cycles(beta, whole_windows)
        longest = int(self._gamma.max())
        sums = np.cumsum(beta ** np.arange(longest))[self._gamma - 1]
        speedups: FloatArray = self._step_ms / ((1 - beta) * head + repeated / sums)
        speedups[self._impossible] = 0.0
        return speedups

    def best(self, beta: float, *, whole_windows: bool) -> BestWindow:
        """The best of all. Of equal ones the first gamma, then the first k."""
        speedups = self.speedups(beta, whole_windows=whole_windows)
        # Rounding must not decide between equals.
        row, column = divmod(int(np.argmax(speedups >= speedups.max() * (1 - 1e-12))), speedups.shape[1])
        return BestWindow(int(self._gamma[row, 0]), int(self._k[0, column]), float(speedups[row, column]))


def window_grid(gamma_max: int, k_max: int | None) -> tuple[range, range]:
    """Every gamma up to ``gamma_max``, and every k up to ``k_max`` (None: to ``gamma_max``)."""
    return range(1, gamma_max + 1), range(min(gamma_max, gamma_max if k_max is None else k_max) + 1)


def best_window(
    beta: float,
    target_ms: PassTimes,
    draft_ms: float,
    gamma_max: int,
    k_max: int | None = None,
    *,
    whole_windows: bool = False,
    lag_ms: float = 0.0,
) -> BestWindow:
    """The best of all ``1 <= gamma <= gamma_max`` and ``0 <= k <= min(k_max, gamma)`` by `loop_speedup`.

    Of equal ones the smallest gamma, then the smallest k. A speed-up below 1 says: decode without a draft.
    """
    _check(gamma_max, 0, beta)
    loop = LoopTimes(*window_grid(gamma_max, k_max), target_ms, draft_ms, lag_ms)
    return loop.best(beta, whole_windows=whole_windows)


def best_vanilla_window(beta: float, target_ms: PassTimes, draft_ms: float, gamma_max: int) -> BestWindow:
    """The window of plain speculative decoding (draft, then verify) that is best by theorem 4 over a measured T_p(n).

    A round takes ``gamma T_q + T_p(gamma + 1)``, for its pass takes in the token before the window too.
    """
    _check(gamma_max, 0, beta)
    time = pass_time(target_ms)
    speedups = [
        geometric_sum(beta, gamma + 1) * time(1) / (gamma * draft_ms + time(gamma + 1))
        for gamma in range(1, gamma_max + 1)
    ]
    best = max(range(gamma_max), key=lambda index: (speedups[index], -index))
    return BestWindow(best + 1, 0, speedups[best])


def _check(gamma: int, k: int, beta: float) -> None:
    if gamma < 1 or not 0 <= k <= gamma:
        raise ValueError(f"gamma is {gamma} and k is {k}: a window has at least 1 token, and 0 <= k <= gamma")
    if not 0 <= beta <= 1:
        raise ValueError(f"beta is {beta}: an acceptance rate is in [0, 1]")
