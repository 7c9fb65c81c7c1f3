"""Callers that leave, are cancelled, or stop reading: their answer is freed, and nobody else notices."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

import anyio
import pytest

from pvlm import Engine, StreamIdle
from tests.engine.conftest import FRAMES, TOY
from tests.support.cancelling import cancelled_at
from tests.support.toy import ToyBackend

pytestmark = pytest.mark.anyio
ENDLESS: dict[str, Any] = {"max_tokens": 100_000, "ignore_eos": True}
SHORT: dict[str, Any] = {"max_tokens": 12, "ignore_eos": True}
EXPECTED = ToyBackend().greedy(12, end_tokens=())


@pytest.fixture(scope="module")
async def narrow(anyio_backend: str) -> AsyncIterator[Engine]:
    """An open engine with one place: one that is lost is noticed by the next answer."""
    async with Engine.create(TOY, max_sessions=1, max_waiting=1) as engine:
        yield engine


async def all_is_free(engine: Engine) -> None:
    """The place is free, both models are, and the engine remembers no session."""
    with anyio.fail_after(60):
        assert list((await engine.answer(FRAMES, "?", **SHORT)).tokens) == EXPECTED
        assert {health.sessions for health in (await engine.health()).values()} == {0}
    assert engine._pair is not None
    assert engine._pair._sessions == {}


# ---- cancelled twice and three times ------------------------------------------------------------------------------


async def answered(engine: Engine) -> None:
    await engine.answer(FRAMES, "?", **SHORT)


async def streamed_and_left(engine: Engine) -> None:
    async with engine.stream(FRAMES, "?", **ENDLESS) as chunks:
        for _ in range(3):
            await chunks.__anext__()


async def in_a_deadline(engine: Engine) -> None:
    """The deadline is itself a cancellation."""
    async with asyncio.timeout(0.002):
        await engine.answer(FRAMES, "?", **ENDLESS)


@pytest.mark.parametrize("ask", [answered, streamed_and_left, in_a_deadline])
async def test_a_place_survives_two_and_three_cancellations_at_every_await(narrow: Engine, ask: Any) -> None:
    awaits = await cancelled_at(ask(narrow), ())
    for first in range(1, min(awaits, 12) + 1):
        for further in ((1,), (1, 2), (2,)):
            await cancelled_at(ask(narrow), {first, *(first + more for more in further)})
    await all_is_free(narrow)


async def test_a_place_survives_a_cancellation_shortly_after_a_deadline(narrow: Engine) -> None:
    """As a server does it that shuts down."""
    for pause_ms in range(6):
        task = asyncio.ensure_future(in_a_deadline(narrow))
        await asyncio.sleep(0.002 + pause_ms / 2000)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    await all_is_free(narrow)


async def opened_and_closed() -> None:
    async with Engine.create(TOY) as engine:
        await engine.answer(FRAMES, "?", **SHORT)


async def bare() -> None:
    await Engine.create(TOY).answer(FRAMES, "?", **SHORT)


@pytest.mark.parametrize("use", [opened_and_closed, bare])
async def test_an_engine_closes_under_two_and_three_cancellations_at_every_await(use: Any) -> None:
    before = asyncio.all_tasks()
    awaits = await cancelled_at(use(), ())
    for first in range(1, min(awaits, 12) + 1):
        for further in ((1,), (1, 2)):
            await cancelled_at(use(), {first, *(first + more for more in further)})
    with anyio.fail_after(60):
        while asyncio.all_tasks() - before or any(toy.open_sessions for toy in ToyBackend.loaded.values()):
            await asyncio.sleep(0.01)


# ---- readers that stop --------------------------------------------------------------------------------------------


async def test_a_complete_answer_is_free_at_once_and_stays_readable(narrow: Engine) -> None:
    async with narrow.stream(FRAMES, "?", **SHORT) as chunks:  # not read
        await all_is_free(narrow)
        assert [token async for chunk in chunks for token in chunk.tokens] == EXPECTED
    assert list(chunks.answer.tokens) == EXPECTED


async def test_a_stream_that_nobody_reads_ends_with_an_error() -> None:
    """What was written before can be read; a reader who waits is no idle one."""
    async with Engine.create(TOY, target="0@1", max_sessions=1, stream_idle_timeout_s=0.2) as engine:
        async with engine.stream(FRAMES, "?", **ENDLESS) as chunks:
            await all_is_free(engine)
            tokens = []
            with pytest.raises(
                StreamIdle, match=r"for 0\.2 s \(stream_idle_timeout_s\), so its answer was ended after"
            ):
                async for chunk in chunks:
                    tokens += chunk.tokens
        assert tokens == ToyBackend().greedy(len(tokens), end_tokens=())
        assert len((await engine.answer(FRAMES, "?", max_tokens=400, ignore_eos=True)).tokens) == 400


async def test_a_reader_that_waits_for_long_is_not_idle() -> None:
    """The first token of these toys takes longer than a stream may be unread."""
    async with Engine.create(TOY, target="0@100", stream_idle_timeout_s=0.2) as engine:
        assert list((await engine.answer(FRAMES, "?", max_tokens=2)).tokens) == ToyBackend().greedy(2)


# ---- leaving while a model is busy --------------------------------------------------------------------------------


@contextmanager
def busy(model: ToyBackend) -> Iterator[threading.Event]:
    """The model is in the middle of a pass until the event is set."""
    free, row = threading.Event(), model.row

    def stuck(prefix: Any) -> Any:
        free.wait(60)
        return row(prefix)

    model.row = stuck  # type: ignore[method-assign]
    try:
        yield free
    finally:
        free.set()
        model.row = row  # type: ignore[method-assign]


@pytest.mark.parametrize("role", ["target", "draft"])
async def test_a_caller_goes_on_while_a_model_is_busy_with_what_it_left(role: str) -> None:
    """The model keeps the answer's place, is not replaced, and frees the answer when it can."""
    async with Engine.create(TOY, close_timeout_s=0.05, max_sessions=1) as engine:
        with busy(ToyBackend.loaded[role]) as free:
            async with engine.stream(FRAMES, "?", **ENDLESS):
                await asyncio.sleep(0.05)
            waiting = asyncio.ensure_future(engine.answer(FRAMES, "?", **SHORT))
            await asyncio.wait([waiting], timeout=0.1)
            assert not waiting.done(), "the place of an answer that was left is taken until the answer is freed"
            free.set()
            assert list((await waiting).tokens) == EXPECTED
        assert {role: health.restarts for role, health in (await engine.health()).items()} == {"target": 0, "draft": 0}


@pytest.mark.parametrize("role", ["target", "draft"])
async def test_a_model_that_hangs_over_an_answer_that_was_left_costs_no_restart(role: str) -> None:
    """Leaving is normal: here no model may be started again, and both are."""
    none = {"target_restarts": 0, "draft_restarts": 0}
    async with Engine.create(TOY, hang_timeout_s=0.3, close_timeout_s=0.05, max_sessions=1, **none) as engine:
        for restarts in (1, 2):
            with busy(ToyBackend.loaded[role]) as free:
                async with engine.stream(FRAMES, "?", **ENDLESS):
                    await asyncio.sleep(0.05)
                with anyio.fail_after(60):
                    while role in engine.models:
                        await asyncio.sleep(0.01)
                free.set()
                assert list((await engine.answer(FRAMES, "?", **SHORT)).tokens) == EXPECTED
            with anyio.fail_after(60):
                while role not in engine.models:
                    await asyncio.sleep(0.01)
            health = (await engine.health())[role]  # type: ignore[index]
            assert health.reason == "it hangs: nothing was heard of it for 0.3 s (hang_timeout_s)"
            assert health.restarts == restarts
