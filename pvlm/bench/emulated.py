"""The runtime, compared with theory, on emulated pairs with the paper's times and acceptance.

Only decoding is measured. The target's prefill takes the time of a few passes, so that the draft can write its first
window in parallel, as in the paper. The draft's prefill and the vision towers take no time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from statistics import mode
from typing import Any

import msgspec
import numpy as np

from pvlm.bench.pairs import BRANCH_COST, HIT_RATES, VANILLA_WINDOW, Pair, Trial
from pvlm.bench.rows import same_named
from pvlm.config import Transport
from pvlm.engine import Engine
from pvlm.errors import OptionError
from pvlm.results import Answer, ratio_or_none
from pvlm.speculation.theory import acceptance_from_length

WARM_UP_TOKENS = 8
"""Tokens of each engine's first answer, which is not measured."""
PREFILL_PASSES = 5
"""Time of the target's prefill in passes: just enough for the draft's first window."""
NEAR_THEORY = 0.97
"""Speed-up of parallel decoding that passes, as a share of theorem 7."""

FRAMES = np.zeros((2, 4, 4, 3), np.uint8)
QUESTION = "What happens?"
"""An emulated pair ignores both."""


class EmulatedRow(msgspec.Struct, frozen=True, kw_only=True):
    """One way of decoding with one pair.

    ``speedup``: plain decoding's ``decode_s`` over this one's, for the same number of tokens. Parallel decoding learns
    its windows, so its second answer is measured; ``first_speedup`` is that of its first. ``predicted``: theorem 4, 7
    or 8. ``paper``: the reported speed-up; ``fitted``: the quantities that are not the paper's; with any, ``paper`` is
    only a rough comparison. ``window``: the most frequent number of drafted tokens in a pass. ``coordination_ms_*``:
    percentiles, not scaled; ``hit_coordination_ms_p50``: after hits alone. ``branches``: prepared windows for each
    window of the line; ``theorem_8``: with them and the measured hit rate. ``same_tokens``: whether the answer equals
    plain decoding.
    """

    pair: str
    method: str
    prune_ratio: float
    speedup: float
    first_speedup: float | None
    predicted: float
    paper: float | None
    fitted: tuple[str, ...]
    given_accepted_length: float
    mean_accepted_length: float | None
    acceptance_rate: float | None
    window: int | None
    coordination_ms_p50: float | None
    coordination_ms_p99: float | None
    hit_coordination_ms_p50: float | None
    hit_rate: float | None
    branches: float | None
    theorem_8: float | None
    target_pass_ms: float | None
    draft_token_ms: float | None
    target_passes: int
    decode_s: float
    same_tokens: bool
    tokens: int
    time_scale: float
    transport: Transport

    @property
    def near_theory(self) -> bool:
        """Whether the speed-up is at least `NEAR_THEORY` of the predicted one."""
        return self.speedup >= NEAR_THEORY * self.predicted

    @property
    def comparable(self) -> bool:
        """Whether theory reaches the paper's figure without fitted quantities."""
        return self.paper is not None and not self.fitted and self.predicted >= self.paper


async def measure_emulated(
    pairs: Iterable[Pair],
    *,
    tokens: int = 256,
    time_scale: float = 0.1,
    branch_cost: float = BRANCH_COST,
    transport: Transport = "ipc",
    on_row: Callable[[EmulatedRow], None] = lambda row: None,
) -> list[EmulatedRow]:
    """Decode an answer of ``tokens`` tokens by every method of every pair; rows in the order of the pairs' trials.
    Parallel decoding has two: what its policy learns from the first is known in the second.

    ``time_scale`` multiplies the pairs' times. ``branch_cost``: what a branch adds to a step of the draft, as a share.
    The draft's guesses and hits are stratified, so that a few hundred tokens have the given acceptance and hit rate.

    Raises OptionError if ``tokens`` or ``time_scale`` is too small.
    """
    if tokens < 2:
        raise OptionError(f"tokens is {tokens}: the first comes from the prefill, so it must be at least 2")
    if time_scale <= 0:
        raise OptionError(f"time_scale is {time_scale:g}: it must be above 0")
    rows: list[EmulatedRow] = []
    for pair in pairs:
        answers: dict[Trial, Answer] = {}
        firsts: dict[Trial, Answer] = {}
        trials = pair.trials(branch_cost)
        for accepted_length in dict.fromkeys(trial.accepted_length for trial in trials):
            settings = pair_settings(pair, accepted_length, time_scale, transport, branch_cost)
            async with Engine.create(settings) as engine:
                await warm_up(engine)
                for trial in trials:
                    if trial.accepted_length == accepted_length:
                        if trial.method == "parallel":
                            firsts[trial] = await _answer(engine, trial, tokens)
                        answers[trial] = await _answer(engine, trial, tokens)
        for row in _rows(pair, answers, firsts, trials, time_scale, transport, branch_cost):
            rows.append(row)
            on_row(row)
    return rows


def pair_settings(
    pair: Pair, accepted_length: float, time_scale: float, transport: Transport, branch_cost: float = BRANCH_COST
) -> dict[str, Any]:
    """Settings of an engine for a pair of the paper's table, with guesses of this mean accepted length."""
    target = {
        "pass_ms": pair.target_ms,
        "prefill_ms": PREFILL_PASSES * pair.target_ms,
        "layers": pair.target_layers,
        "time_scale": time_scale,
    }
    draft = {
        "pruned_pass_ms": pair.draft_ms,
        "layers": pair.draft_layers,
        "acceptance": acceptance_from_length(accepted_length),
        "stratified": True,
        "hit_rates": HIT_RATES,
        "further_token": branch_cost,
        "time_scale": time_scale,
    }
    return emulated_settings(target, draft, transport)


def emulated_settings(target: dict[str, Any], draft: dict[str, Any], transport: Transport) -> dict[str, Any]:
    """Settings of an engine for an emulated pair; ``target`` and ``draft`` as `EmulatedModel` has them."""
    return {
        "target": msgspec.json.encode(target).decode(),
        "draft": msgspec.json.encode(draft).decode(),
        "backend": "emulated",
        "transport": transport,
        "method": "parallel",
        "prefix_cache_bytes": 0,
        # A pass is a sleep: it needs neither a core of its own nor threads.
        "affinity": (),
        "draft_affinity": (),
        "threads": 1,
        "draft_threads": 1,
    }


async def warm_up(engine: Engine) -> None:
    """Answer once, because torch is slow at its first operations. The policy of parallel decoding learns nothing."""
    await engine.answer(FRAMES, QUESTION, max_tokens=WARM_UP_TOKENS, method="sd", window=1)


async def _answer(engine: Engine, trial: Trial, tokens: int) -> Answer:
    return await engine.answer(
        FRAMES,
        QUESTION,
        max_tokens=tokens,
        method=trial.method,
        window="auto" if trial.method == "parallel" else VANILLA_WINDOW,
        prune="uv" if trial.prune_ratio else "none",
        prune_ratio=trial.prune_ratio,
        outcomes=trial.outcomes,
    )


def _rows(
    pair: Pair,
    answers: dict[Trial, Answer],
    firsts: dict[Trial, Answer],
    trials: list[Trial],
    time_scale: float,
    transport: Transport,
    branch_cost: float,
) -> Iterator[EmulatedRow]:
    plain = next(answers[trial] for trial in trials if trial.method == "ar")
    for trial in trials:
        answer, first = answers[trial], firsts.get(trial)
        stats = answer.stats
        branches = ratio_or_none(stats.prepared_windows, stats.prepared_batches)
        theorem_8 = None
        if branches is not None and stats.hit_rate is not None:
            theorem_8 = pair.theorem_8_at(branch_cost, branches, stats.hit_rate)
        figures = (
            same_named(EmulatedRow, stats)
            | same_named(EmulatedRow, trial)
            | {
                "pair": pair.name,
                "method": trial.label,
                "speedup": plain.stats.decode_s / stats.decode_s,
                "first_speedup": None if first is None else plain.stats.decode_s / first.stats.decode_s,
                "given_accepted_length": trial.accepted_length,
                "window": mode(stats.windows) if stats.windows else None,
                "coordination_ms_p50": _percentile(stats.coordination_ms, 50),
                "coordination_ms_p99": _percentile(stats.coordination_ms, 99),
                "hit_coordination_ms_p50": _percentile(stats.hit_coordination_ms, 50),
                "branches": branches,
                "theorem_8": theorem_8,
                "same_tokens": all(one is None or one.tokens == plain.tokens for one in (first, answer)),
                "tokens": len(answer.tokens),
                "time_scale": time_scale,
                "transport": transport,
            }
        )
        yield EmulatedRow(**figures)


def _percentile(values: Sequence[float], percent: int) -> float | None:
    return float(np.percentile(values, percent)) if values else None
