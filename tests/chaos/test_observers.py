"""Observers and the log fail at random while workers are killed: every answer is exact."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import msgspec
import pytest
import structlog

from tests.chaos.storm import EMULATED, Figures, emulated_questions, kill, references, storm, write

ANSWERS = 110
SEED = 51


class Failing:
    """A progress callback, metrics and a recorder. A third of their calls fail, each in another way."""

    def __init__(self, faults: Counter[str]) -> None:
        self._choose = random.Random(SEED)
        self._faults = faults

    def _fail(self, what: str) -> None:
        if self._choose.random() < 0.3:
            self._faults[f"{what} raises"] += 1
            raise self._choose.choice([RuntimeError("observed"), KeyError(3), OSError(28, "No space"), StopIteration()])

    def __call__(self, what: str, fraction: float) -> None:
        self._fail("on_progress")

    def add(self, metric: Any, amount: float = 1.0, **labels: str) -> None:
        self._fail("metrics")

    observe = add

    def began(self, recorded: Any) -> None:
        self._fail("trace")

    def handled(self, event: Any, commands: Any) -> None:
        self._fail("trace")

    ended = began


class FullDisk:
    """A log file without room."""

    def __init__(self, faults: Counter[str]) -> None:
        self._faults = faults

    def write(self, text: str) -> int:
        self._faults["log line not written"] += 1
        raise OSError(28, "No space left on device")

    def flush(self) -> None:
        pass


async def watched_storm(
    figures: Figures, settings: dict[str, Any], asked: list[dict[str, Any]], answers: int, every_s: float
) -> None:
    faults: Counter[str] = Counter()
    failing = Failing(faults)
    full: Any = FullDisk(faults)
    questions = [
        msgspec.structs.replace(question, options={**question.options, "trace": failing})
        for question in await references(settings, asked)
    ]
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger("debug"), logger_factory=structlog.PrintLoggerFactory(full)
    )
    await storm(
        figures,
        settings,
        questions,
        answers=answers,
        seed=SEED,
        strikes=[kill] if every_s else [],
        every_s=every_s,
        observers={"on_progress": failing, "metrics": failing},
    )
    for kind, times in faults.items():
        figures.count("faults", kind, times)
    assert figures.wrong == []
    assert figures.outcomes == {"exact": answers}
    assert all(faults[f"{what} raises"] for what in ("on_progress", "metrics", "trace"))
    assert faults["log line not written"]


@pytest.mark.anyio
async def test_observers_that_fail_change_no_answer() -> None:
    """A short form of the storm below."""
    settings = {**EMULATED, "backend": "emulated", "transport": "inproc"}
    await watched_storm(Figures(name="short observers"), settings, emulated_questions([20])[:3], 4, every_s=0)


@pytest.mark.anyio
@pytest.mark.chaos
@pytest.mark.timeout(900)
async def test_observers_that_fail_while_workers_are_killed() -> None:
    figures = Figures(name="ipc failing observers")
    settings = {**EMULATED, "backend": "emulated", "transport": "ipc"}
    await watched_storm(figures, settings, emulated_questions(), ANSWERS, every_s=10.0)
    write(figures)
