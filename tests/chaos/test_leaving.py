"""Callers that are cancelled again and again, that hang up, and readers that stop: nobody else notices."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import anyio
import pytest

from pvlm import Engine
from tests.chaos.faults import Schedule
from tests.chaos.storm import (
    EMULATED,
    FRAMES,
    SETTINGS,
    Figures,
    emulated_questions,
    hang_up,
    stop_reading,
    write,
)
from tests.chaos.test_storms import faulty_storm, settled
from tests.support.cancelling import cancelled_at

pytestmark = [pytest.mark.anyio, pytest.mark.chaos, pytest.mark.timeout(900)]
AWAITS = 14
"""As many as an answer of some tokens has."""
INPROC: dict[str, Any] = {**SETTINGS, **EMULATED, "backend": "emulated", "transport": "inproc"}
SHORT: dict[str, Any] = {"max_tokens": 6}


async def answered(engine: Engine) -> None:
    await engine.answer(FRAMES, "?", **SHORT)


async def streamed(engine: Engine) -> None:
    async with engine.stream(FRAMES, "?", **SHORT) as chunks:
        async for _ in chunks:
            pass


async def left(engine: Engine) -> None:
    async with engine.stream(FRAMES, "?", max_tokens=1000) as chunks:
        await chunks.__anext__()


async def in_a_deadline(engine: Engine) -> None:
    async with asyncio.timeout(0.03):
        await engine.answer(FRAMES, "?", max_tokens=1000)


async def within_a_scope(engine: Engine) -> None:
    with anyio.move_on_after(0.03):
        await engine.answer(FRAMES, "?", max_tokens=1000)


async def test_two_and_three_cancellations_at_every_await() -> None:
    """The first at each await, and the others at those that are left then: a caller that leaves has one or two.

    Deadlines and scopes are cancellations too, and are not counted.
    """
    figures = Figures(name="cancellations")
    async with Engine.create({**INPROC, "max_sessions": 1, "max_waiting": 1}) as engine:
        expected = (await engine.answer(FRAMES, "?", **SHORT)).tokens
        for ask in (answered, streamed, left, in_a_deadline, within_a_scope):
            for first in range(1, AWAITS + 1):
                for second in (1, 2):
                    for third in (0, 1, 2):
                        at = {first, first + second, first + second + third}
                        awaits = await cancelled_at(ask(engine), at)
                        figures.answers += 1
                        figures.count("faults", f"cancelled {sum(one <= awaits for one in at)} times")
                with anyio.fail_after(60):
                    assert (await engine.answer(FRAMES, "?", **SHORT)).tokens == expected
        health = await engine.health()
        assert {role: (one.sessions, one.restarts) for role, one in health.items()} == {
            "target": (0, 0),
            "draft": (0, 0),
        }
        assert engine._pair is not None
        assert engine._pair._sessions == {}
    write(figures)
    assert figures.faults["cancelled 1 times"] > 10
    assert figures.faults["cancelled 2 times"] > 10


@pytest.mark.parametrize(("transport", "seed"), [("inproc", 51), ("ipc", 52)])
async def test_callers_hang_up_and_readers_stop(transport: str, seed: int, tmp_path: Path) -> None:
    """Freeing takes longer than a caller waits for it: a vision tower of 0.1 s, and a prefill as long. No worker is
    replaced for that, and no answer beside it is another.
    """
    slow = {"target": EMULATED["target"].replace('"prefill_ms": 20, "open_ms": 5', '"prefill_ms": 100, "open_ms": 100')}
    patience = {"close_timeout_s": 0.01, "stream_idle_timeout_s": 1.0, "target_restarts": 0, "draft_restarts": 0}
    settings = {**EMULATED, **slow, "transport": transport, "hang_timeout_s": 30.0}
    figures = await faulty_storm(
        f"{transport} leavers and stopped readers",
        tmp_path,
        settings,
        emulated_questions(),
        Schedule(),
        seed=seed,
        only_then=patience,
        answers=60,
        strikes=[hang_up, stop_reading],
        every_s=0.05,
    )
    write(figures)
    settled(figures, 60)
    assert figures.outcomes["exact"] == 60
    assert set(figures.restarts.values()) == {0}
    assert {"cancelled 1 times", "cancelled 2 times", "cancelled 3 times", "read late"} <= set(figures.faults)
