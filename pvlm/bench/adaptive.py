"""The automatic window, compared with the best fixed windows and with plain decoding, on emulated pairs."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from statistics import median

import msgspec

from pvlm.bench.emulated import FRAMES, QUESTION, emulated_settings, warm_up
from pvlm.bench.pairs import HIT_RATES
from pvlm.config import Transport, WindowSetting
from pvlm.engine import Engine
from pvlm.results import Answer
from pvlm.speculation.theory import MeasuredCurve, best_window

GAMMA_MAX = 16
OF_BEST = 0.93
"""Required speed, as a share of the best fixed windows' speed."""
OF_PLAIN = 0.98
"""Required speed, as a share of plain decoding's speed, if drafting cannot win."""


@dataclass(frozen=True)
class Phase:
    """``tokens`` answer tokens at acceptance ``beta``."""

    beta: float
    tokens: int


@dataclass(frozen=True)
class Scenario:
    """An answer whose acceptance changes. Times in ms; ``hopeless``: drafting cannot win."""

    name: str
    target_ms: dict[int, float]
    draft_ms: float
    phases: tuple[Phase, ...]
    hopeless: bool = False

    def best_gamma(self, phase: Phase) -> int:
        """The best window of a phase for a target that never waits for the draft (as with every fixed window)."""
        curve = MeasuredCurve(self.target_ms)
        return best_window(phase.beta, curve, self.draft_ms, GAMMA_MAX, 0, whole_windows=True).gamma


SCENARIOS = {
    scenario.name: scenario
    for scenario in (
        Scenario("changing", {1: 60.0, 17: 120.0}, 60 / 9, (Phase(0.9, 160), Phase(0.6, 160), Phase(0.9, 160))),
        Scenario("changing-often", {1: 60.0, 17: 120.0}, 60 / 9, tuple(Phase(b, 80) for b in (0.9, 0.6) * 3)),
        Scenario("window-too-short", {1: 60.0}, 5.0, (Phase(0.95, 300),)),
        Scenario("window-too-long", {1: 60.0, 17: 180.0}, 30.0, (Phase(0.5, 200),)),
        Scenario("as-slow", {1: 60.0}, 60.0, (Phase(0.3, 150),), hopeless=True),
        Scenario("slower", {1: 60.0}, 85.0, (Phase(0.9, 150),), hopeless=True),
        Scenario("costly-windows", {1: 60.0, 5: 110.0}, 50.0, (Phase(0.2, 150),), hopeless=True),
    )
}
"""Decoding starts with a window of 4. That is too short for c = 12, and too long for c = 2 with costly windows."""


class AdaptiveRow(msgspec.Struct, frozen=True, kw_only=True):
    """The automatic window on one scenario.

    ``against``: ``plain`` decoding, or the best ``fixed`` window of each phase; ``ratio``: the time of these over the
    automatic window's time; ``required``: the least ratio to pass. ``windows``: the fixed window of each phase.
    """

    scenario: str
    against: str
    ratio: float
    required: float
    windows: tuple[int, ...]
    rests: int
    acceptance_rate: float | None
    tokens: int
    same_tokens: bool

    @property
    def passed(self) -> bool:
        return self.ratio >= self.required


async def measure_adaptive(
    scenarios: Iterable[Scenario],
    *,
    rounds: int = 3,
    time_scale: float = 1.0,
    transport: Transport = "ipc",
    on_row: Callable[[AdaptiveRow], None] = lambda row: None,
) -> list[AdaptiveRow]:
    """Answer each scenario ``rounds`` times with the automatic window and with the decoding it is compared with."""
    rows: list[AdaptiveRow] = []
    for scenario in scenarios:
        ratios, same = [], True
        for _ in range(rounds):
            answer = await _answer(scenario, scenario.phases, "auto", time_scale, transport)
            if scenario.hopeless:
                others = [await _answer(scenario, scenario.phases, None, time_scale, transport)]
            else:
                others = [
                    await _answer(scenario, (phase,), scenario.best_gamma(phase), time_scale, transport)
                    for phase in scenario.phases
                ]
            start = others[0].tokens
            same &= answer.tokens[: len(start)] == start[: len(answer.tokens)]
            ratios.append(sum(other.stats.decode_s for other in others) / answer.stats.decode_s)
        rows.append(
            AdaptiveRow(
                scenario=scenario.name,
                against="plain" if scenario.hopeless else "fixed",
                ratio=median(ratios),
                required=OF_PLAIN if scenario.hopeless else OF_BEST,
                windows=() if scenario.hopeless else tuple(scenario.best_gamma(phase) for phase in scenario.phases),
                rests=answer.stats.rests,
                acceptance_rate=answer.stats.acceptance_rate,
                tokens=len(answer.tokens),
                same_tokens=same,
            )
        )
        on_row(rows[-1])
    return rows


async def _answer(
    scenario: Scenario, phases: tuple[Phase, ...], window: WindowSetting | None, time_scale: float, transport: Transport
) -> Answer:
    """``window`` None: plain decoding. Each answer has a new engine, which has learned nothing."""
    target = {"pass_ms": scenario.target_ms, "time_scale": time_scale}
    draft = {
        "pass_ms": scenario.draft_ms,
        "acceptance": [{"beta": phase.beta, "tokens": phase.tokens} for phase in phases],
        "stratified": True,
        "hit_rates": HIT_RATES,
        "time_scale": time_scale,
    }
    async with Engine.create(emulated_settings(target, draft, transport), prune="none") as engine:
        await warm_up(engine)
        return await engine.answer(
            FRAMES,
            QUESTION,
            max_tokens=sum(phase.tokens for phase in phases),
            method="ar" if window is None else "parallel",
            window=window or "auto",
        )
