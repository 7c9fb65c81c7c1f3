"""Answers that are left, which is normal: both workers free them, and no worker is replaced for that."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import anyio
import numpy as np
import psutil
import pytest

from pvlm import Engine
from tests.support.toy import ToyBackend
from tests.workers.conftest import FRAMES, LONG, TOY, workers

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("_nothing_left", "_toys")]
CANCELLED = 500
LARGE = np.zeros((16, 64, 64, 3), np.uint8)
"""192 KiB: were it kept, 400 of them would be seen."""
GROWTH_BYTES = 24 << 20


def resident(pids: list[int]) -> list[int]:
    return [psutil.Process(pid).memory_info().rss for pid in pids]


async def test_answers_cancelled_at_random_points_leave_nothing() -> None:
    """Four callers at a time, while they wait, in the prefill, in decoding, or just after the end."""
    rng = random.Random(0)
    expected = ToyBackend().greedy(12, end_tokens=())
    left, cut_short, grown_from = CANCELLED, 0, []
    async with Engine.create(TOY, target="0@1", draft="0.5@0", max_sessions=3) as engine:
        first = await engine.health()
        pids = [health.pid for health in first.values() if health.pid] + [psutil.Process().pid]

        async def leave_again_and_again() -> None:
            nonlocal left, cut_short
            while left > 0:
                left -= 1
                if left == CANCELLED - 100:
                    grown_from.extend(resident(pids))
                method = rng.choice(["parallel", "parallel", "sd", "ar"])
                with anyio.move_on_after(rng.choice([0.005, 0.02, 0.04]) * rng.random()) as scope:
                    await engine.answer(LARGE, "?", max_tokens=12, ignore_eos=True, method=method)
                cut_short += scope.cancelled_caught

        async with anyio.create_task_group() as tasks:
            for _ in range(4):
                tasks.start_soon(leave_again_and_again)
        assert cut_short > CANCELLED / 2
        with anyio.fail_after(30):  # a caller waits for a busy worker for 2 s only
            health = await engine.health()
            while any(found.sessions for found in health.values()):
                await anyio.sleep(0.05)
                health = await engine.health()
        assert set(health) == {"target", "draft"}
        assert {role: found.pid for role, found in health.items()} == {role: found.pid for role, found in first.items()}
        for before, now in zip(grown_from, resident(pids), strict=True):
            assert now - before < GROWTH_BYTES
        assert list((await engine.answer(LARGE, "?", max_tokens=12, ignore_eos=True)).tokens) == expected


async def leave_by_scope(engine: Engine, options: dict[str, Any]) -> None:
    with anyio.CancelScope() as scope:
        async with engine.stream(FRAMES, "?", **options) as chunks:
            await chunks.__anext__()
            scope.cancel()
            await anyio.sleep_forever()


async def leave_by_deadline(engine: Engine, options: dict[str, Any]) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await engine.answer(FRAMES, "?", **options)


async def leave_the_stream(engine: Engine, options: dict[str, Any]) -> None:
    async with engine.stream(FRAMES, "?", **options) as chunks:
        await chunks.__anext__()


async def leave_by_task(engine: Engine, options: dict[str, Any]) -> None:
    task = asyncio.ensure_future(engine.answer(FRAMES, "?", **options))
    await asyncio.sleep(0.1)
    task.cancel()
    await asyncio.wait([task])


async def test_however_it_is_left_an_answer_is_gone_from_both_workers_when_the_caller_goes_on() -> None:
    async with Engine.create(TOY) as engine:
        for leave in (leave_by_scope, leave_by_deadline, leave_the_stream, leave_by_task):
            await leave(engine, LONG)
            found = await engine.health()
            assert {role: health.sessions for role, health in found.items()} == {"target": 0, "draft": 0}, leave


async def test_a_caller_that_leaves_goes_on_while_a_worker_is_busy() -> None:
    """The worker is not replaced, and frees the answer when it can; its place is taken until then.

    `tests.engine.test_leaving` has more of this, in threads.
    """
    async with Engine.create(TOY, close_timeout_s=0.2, max_sessions=1) as engine:
        before = engine.processes
        async with engine.stream(FRAMES, "?", **LONG) as chunks:
            await chunks.__anext__()
            busy = workers()["target"]
            busy.suspend()
        waiting = asyncio.ensure_future(engine.answer(FRAMES, "?", max_tokens=12))
        await asyncio.wait([waiting], timeout=0.3)
        assert not waiting.done(), "the answer that was left holds its place until it is freed"
        busy.resume()
        assert list((await waiting).tokens) == ToyBackend().greedy(12)
        assert engine.processes == before
