"""The pairs of models in the paper's table, and theory's predictions for them (ParallelVLM, arXiv 2603.19610).

Quantities that the paper does not give are fitted, and listed as ``fitted``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from pvlm.config import Method, OutcomesSetting
from pvlm.speculation.outcomes import OutcomeTimes
from pvlm.speculation.theory import acceptance_from_length, best_parallel_speedup, vanilla_speedup

VANILLA_WINDOW = 5
"""Window of draft-then-verify, as in the paper's measurement of SpecVLM."""
PRUNE_RATIO = 0.9
"""Share of the video tokens that a pruned draft does not see."""
GAMMA_MAX = 32
"""Largest window considered for the best of theorem 7."""
HIT_RATES = (0.6, 0.79)
"""How often the target's token is the draft's best other token, and one of its two best others, where it rejects one.
Measured with the bundled pair; the paper has no such figure."""
BRANCH_COST = 0.02
"""What a branch adds to a step of the draft, as a share of it. An assumption: such a step is bound by memory."""


@dataclass(frozen=True)
class Pair:
    """A target and its draft as the paper measured them. Times in ms.

    ``draft_ms``: T_q by prune ratio; ``accepted_length``: M, accepted tokens per rejection. ``paper`` and
    ``paper_specvlm``: the reported speed-ups. ``specvlm_accepted_length``: SpecVLM's own M, if it is reported.
    ``fitted``: those of T_p, T_q and M that are not the paper's. ``target_layers``, ``draft_layers``: decoder layers of
    the released models. ``target_prefill_ms``, ``draft_prefill_ms``: of 24K video tokens, the draft's without pruning;
    None where the paper does not give them.
    """

    name: str
    models: str
    target_ms: float
    draft_ms: Mapping[float, float]
    accepted_length: float
    paper: float
    paper_specvlm: float
    target_layers: int
    draft_layers: int
    specvlm_accepted_length: float | None = None
    fitted: tuple[str, ...] = ()
    target_prefill_ms: float | None = None
    draft_prefill_ms: float | None = None

    def trials(self, branch_cost: float = BRANCH_COST) -> list[Trial]:
        """Plain decoding, vanilla speculative decoding without and with pruning (SpecVLM's schedule), and parallel
        without and with prepared outcomes. ``branch_cost``: see `BRANCH_COST`.
        """
        m = self.accepted_length
        own = self.specvlm_accepted_length
        specvlm_fitted = self.fitted if own is None else tuple(what for what in self.fitted if what != "M")
        if own is None and "M" not in specvlm_fitted:
            specvlm_fitted = (*specvlm_fitted, "M")
        return [
            Trial("ar", "ar", m, predicted=1.0),
            Trial("sd", "sd", m, predicted=self.vanilla(m, 0.0), fitted=self.fitted),
            Trial(
                "specvlm",
                "sd",
                own or m,
                PRUNE_RATIO,
                predicted=self.vanilla(own or m, PRUNE_RATIO),
                paper=self.paper_specvlm,
                fitted=specvlm_fitted,
            ),
            Trial(
                "parallel",
                "parallel",
                m,
                PRUNE_RATIO,
                predicted=self.theorem_7(),
                paper=self.paper,
                fitted=self.fitted,
            ),
            Trial(
                "outcomes",
                "parallel",
                m,
                PRUNE_RATIO,
                outcomes="auto",
                predicted=max(self.theorem_7(), self.theorem_8(branch_cost, HIT_RATES)),
                paper=self.paper,
                fitted=self.fitted,
            ),
        ]

    def vanilla(self, accepted_length: float, ratio: float) -> float:
        """Theorem 4: the speed-up of draft-then-verify at `VANILLA_WINDOW`."""
        beta = acceptance_from_length(accepted_length)
        return vanilla_speedup(VANILLA_WINDOW, beta, self.target_ms / self.draft_ms[ratio])

    def theorem_7(self) -> float:
        """Theorem 7: the best speed-up of parallel decoding over gamma and k, at `PRUNE_RATIO`."""
        beta = acceptance_from_length(self.accepted_length)
        return best_parallel_speedup(beta, self.target_ms, self.draft_ms[PRUNE_RATIO], GAMMA_MAX)

    def theorem_8(self, branch_cost: float, hits: Sequence[float]) -> float:
        """Theorem 8 with the best s, k and number of branches. ``hits``: hit rate by the number of ranks prepared."""
        draft_ms = self.draft_ms[PRUNE_RATIO]
        times = OutcomeTimes(GAMMA_MAX, self.target_ms, draft_ms, lambda n: draft_ms * (1 + branch_cost * (n - 1)))
        return times.best(acceptance_from_length(self.accepted_length), (0.0, *hits)).speedup

    def theorem_8_at(self, branch_cost: float, branches: float, hit_rate: float) -> float:
        """Theorem 8 with the best s and k, for a measured number of branches and hit rate."""
        draft_ms = self.draft_ms[PRUNE_RATIO]
        branch_ms = draft_ms * (1 + branch_cost * branches)
        times = OutcomeTimes(GAMMA_MAX, self.target_ms, draft_ms, lambda _: branch_ms)
        rates = np.full((GAMMA_MAX, GAMMA_MAX + 1), hit_rate)
        return float(times.speedups(acceptance_from_length(self.accepted_length), rates, 0).max())


@dataclass(frozen=True)
class Trial:
    """One way of decoding with a pair. ``label``: as in the table; ``method``: the engine's.

    ``predicted``: the speed-up by theorem 4, 7, or the better of 7 and 8; ``paper``: the reported one; ``fitted``:
    the quantities of this trial that are not the paper's.
    """

    label: str
    method: Method
    accepted_length: float
    prune_ratio: float = 0.0
    outcomes: OutcomesSetting = 0
    predicted: float = field(kw_only=True)
    paper: float | None = field(kw_only=True, default=None)
    fitted: tuple[str, ...] = field(kw_only=True, default=())


_OV_7B_MS = {0.0: 78.3, 0.5: 57.5, 0.9: 46.6}
_QWEN_7B_MS = {0.0: 63.7, 0.5: 48.2, 0.9: 39.8}

PAIRS = {
    pair.name: pair
    for pair in (
        Pair(
            "ov-7b-72b",
            "LLaVA-OneVision 7B & 72B",
            420.0,
            _OV_7B_MS,
            6.8,
            3.36,
            2.74,
            80,
            28,
            4.4,
            target_prefill_ms=44_230.0,
            draft_prefill_ms=7_920.0,
        ),
        Pair("qwen-7b-32b", "Qwen2.5-VL 7B & 32B", 203.0, _QWEN_7B_MS, 4.3, 2.42, 2.11, 64, 28, 4.2),
        # T_p: the 7B's time as a draft. T_q: from the paper's c = 2 without pruning; with pruning c = 3 is assumed.
        Pair(
            "ov-0.5b-7b",
            "LLaVA-OneVision 0.5B & 7B",
            78.3,
            {0.0: 78.3 / 2, 0.9: 78.3 / 3},
            8.3,
            2.11,
            1.81,
            28,
            24,
            4.8,
            fitted=("T_p", "T_q"),
        ),
        # A model and its pruned self: the paper gives M > 14 for the first pair, and no M for the second.
        Pair("ov-7b-7b", "LLaVA-OneVision 7B & itself", 78.3, _OV_7B_MS, 14.0, 1.55, 1.22, 28, 28, fitted=("M",)),
        Pair("qwen-7b-7b", "Qwen2.5-VL 7B & itself", 63.7, _QWEN_7B_MS, 14.0, 1.51, 1.21, 28, 28, fitted=("M",)),
    )
}
"""By name."""
