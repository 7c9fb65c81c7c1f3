"""Theorems of ParallelVLM (2603.19610) that the product does not call: 1, 2, 3, 5 and 6.

They complete the theorems in `theory`, which the product calls: the tests compare the two, and the documentation quotes
figures of both. The symbols are those of `theory`. Imports no torch.
"""

from __future__ import annotations

import math

from pvlm.speculation.theory import check_window, geometric_sum


def accepted_length(beta: float) -> float:
    """M, accepted tokens per rejection, from beta; infinite at beta = 1."""
    return beta / (1 - beta) if beta < 1 else math.inf


def ideal_speedup(average_acceptance: float, c: float) -> float:
    """Theorem 1: ``tau * c``, at most c. ``average_acceptance`` (tau) in [0, 1]."""
    return min(max(average_acceptance, 0.0), 1.0) * c


def vanilla_speedup_ideal(gamma: int, c: float) -> float:
    """Theorem 2: draft, then verify; every token is accepted, without a bonus token: ``gamma c / (gamma + c)``."""
    return gamma * c / (gamma + c)


def parallel_speedup_ideal(gamma: int, c: float) -> float:
    """Theorem 3: draft while verifying; every token is accepted: ``min(gamma, c)``, best at gamma = c."""
    return min(float(gamma), c)


def parallel_speedup_free(gamma: int, beta: float, c: float) -> float:
    """Theorem 5: draft while verifying; a rollback costs nothing.

    ``(1 - beta**gamma) / (1 - beta) * T_p / max(gamma T_q, T_p)``
    """
    check_window(gamma, 0, beta)
    return geometric_sum(beta, gamma) / max(gamma / c, 1.0)


def parallel_speedup_barrier(gamma: int, beta: float, c: float) -> float:
    """Theorem 6: the loop with rollback and k = 0. Every step takes ``max(T_p, gamma T_q)``, also the solo step.

    ``[1 / (1 - beta)] / [1 + beta / (1 - beta**gamma)] * T_p / max(T_p, gamma T_q)``; at beta = 1 theorem 3. Exact for
    ``gamma T_q <= T_p``, else a lower bound.
    """
    check_window(gamma, 0, beta)
    return 1 / ((1 - beta) + beta / geometric_sum(beta, gamma)) / max(1.0, gamma / c)
