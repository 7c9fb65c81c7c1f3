"""Many answers at once on one engine: some are written, some wait, and the rest are refused."""

from __future__ import annotations

import asyncio
from typing import Any

import anyio
import pytest

from pvlm import Engine, EngineBusy, EngineStateError
from tests.engine.conftest import FRAMES, TOY
from tests.support.toy import ToyBackend

pytestmark = pytest.mark.anyio
ENDLESS: dict[str, Any] = {"max_tokens": 100_000, "ignore_eos": True}


@pytest.mark.parametrize("count", [1, 2, 4, 8])
@pytest.mark.parametrize("sampling", [{}, {"temperature": 1.0}], ids=["greedy", "gumbel"])
async def test_answers_at_once_are_those_of_each_alone(count: int, sampling: dict[str, Any]) -> None:
    def asked(number: int) -> dict[str, Any]:
        seeded = {"seed": number, **sampling} if sampling else {}
        return {"max_tokens": 30 + 7 * number, "method": ["parallel", "sd", "ar"][number % 3], **seeded}

    async with Engine.create(TOY, max_sessions=8) as engine:
        alone = [await engine.answer(FRAMES, "?", ignore_eos=True, **asked(number)) for number in range(count)]
        together = await asyncio.gather(
            *(engine.answer(FRAMES, "?", ignore_eos=True, **asked(number)) for number in range(count))
        )
    assert [answer.tokens for answer in together] == [answer.tokens for answer in alone]


async def test_places_are_limited_and_given_in_order() -> None:
    most, finished = 0, []
    async with Engine.create(TOY, max_sessions=2) as engine:
        target = ToyBackend.loaded["target"]

        async def ask(number: int) -> None:
            nonlocal most
            async with engine.stream(FRAMES, "?", max_tokens=60, ignore_eos=True) as chunks:
                async for _ in chunks:
                    most = max(most, target.open_sessions)
            finished.append(number)

        async with anyio.create_task_group() as tasks:
            for number in range(8):
                tasks.start_soon(ask, number)
    assert most == 2
    assert sorted(finished) == list(range(8))
    # Two are written side by side, so either of a pair may be done first.
    assert all(abs(place - number) <= 1 for place, number in enumerate(finished))


async def test_one_too_many_is_refused_at_once_and_a_left_place_is_free() -> None:
    async with Engine.create(TOY, max_sessions=1, max_waiting=1) as engine:
        async with engine.stream(FRAMES, "?", **ENDLESS) as chunks:
            await chunks.__anext__()
            waiting = asyncio.ensure_future(engine.answer(FRAMES, "?", max_tokens=9))
            await asyncio.sleep(0.01)
            with pytest.raises(EngineBusy, match=r"1 answers are being written \(max_sessions\) and 1 wait"):
                await engine.answer(FRAMES, "?", max_tokens=9)
            waiting.cancel()
            await asyncio.wait([waiting])
            waiting = asyncio.ensure_future(engine.answer(FRAMES, "?", max_tokens=9))
            await asyncio.sleep(0.01)
            assert not waiting.done()
        answer = await waiting
        assert list(answer.tokens) == ToyBackend().greedy(9)
        assert answer.stats.waiting_s > 0.005


async def test_without_a_queue_a_second_answer_is_refused() -> None:
    async with (
        Engine.create(TOY, max_sessions=1, max_waiting=0) as engine,
        engine.stream(FRAMES, "?", **ENDLESS) as chunks,
    ):
        await chunks.__anext__()
        with pytest.raises(EngineBusy, match="0 wait"):
            await engine.answer(FRAMES, "?")


async def test_closing_the_engine_ends_those_that_wait() -> None:
    async with Engine.create(TOY, max_sessions=1) as engine, engine.stream(FRAMES, "?", **ENDLESS) as chunks:
        await chunks.__anext__()
        waiting = [asyncio.ensure_future(engine.answer(FRAMES, "?")) for _ in range(3)]
        await asyncio.sleep(0.01)
        await engine.aclose()
        for answer in waiting:
            with pytest.raises(EngineStateError, match="was closed before the answer was complete"):
                await answer
