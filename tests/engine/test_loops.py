"""Who may use an engine from where: any task of its event loop, no other loop, and threads without a loop."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import pytest

from pvlm import Engine, EngineState, EngineStateError
from pvlm.runtime.loops import LoopThread, call
from tests.engine.conftest import FRAMES, TOY
from tests.support.toy import ToyBackend

SHORT: dict[str, Any] = {"max_tokens": 12, "ignore_eos": True}
EXPECTED = ToyBackend().greedy(12, end_tokens=())

# ---- another task -------------------------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_opening_asking_streaming_and_closing_may_each_be_another_task() -> None:
    """As the cells of a notebook and the hooks of a server are."""
    engine = Engine.create(TOY)
    stream = engine.stream(FRAMES, "?", **SHORT)
    tokens: list[int] = []

    async def read() -> None:
        tokens.extend((await stream.__anext__()).tokens)

    await asyncio.create_task(engine.open())
    await asyncio.create_task(engine.answer(FRAMES, "?", **SHORT))
    await asyncio.create_task(stream.__aenter__())
    for _ in range(2):
        await asyncio.create_task(read())
    await asyncio.create_task(stream.__aexit__(None, None, None))
    await asyncio.create_task(engine.aclose())
    assert tokens == EXPECTED[: len(tokens)]
    assert engine.state is EngineState.CLOSED
    with pytest.raises(EngineStateError, match="cannot be opened again"):
        await engine.open()


@pytest.mark.anyio
async def test_a_dropped_generator_around_a_stream_cancels_nobody() -> None:
    """The event loop closes it in a task of its own, at any time, while its consumer does something else."""

    async def tokens() -> AsyncIterator[int]:
        async with Engine.create(TOY).stream(FRAMES, "?", max_tokens=100_000, ignore_eos=True) as chunks:
            async for chunk in chunks:
                for token in chunk.tokens:
                    yield token

    before = asyncio.all_tasks()
    async for token in tokens():
        assert token == EXPECTED[0]
        break
    gc.collect()
    for _ in range(200):  # unrelated work
        await asyncio.sleep(0.01)
        if not asyncio.all_tasks() - before:
            break
    assert asyncio.current_task() in before
    assert asyncio.all_tasks() - before == set()
    assert {toy.open_sessions for toy in ToyBackend.loaded.values()} == {0}


@pytest.mark.anyio
async def test_an_engine_may_be_closed_by_a_task_group_inside_it() -> None:
    async with Engine.create(TOY) as engine, asyncio.TaskGroup() as tasks:
        await engine.answer(FRAMES, "?", **SHORT)
        tasks.create_task(engine.aclose())


@pytest.mark.anyio
async def test_an_engine_that_is_closed_while_it_loads_says_so() -> None:
    engine = Engine.create(TOY)
    opening = asyncio.create_task(engine.__aenter__())
    await asyncio.sleep(0)
    await engine.aclose()
    with pytest.raises(EngineStateError, match="closed while it loaded"):
        await opening


@pytest.mark.anyio
async def test_a_stream_is_entered_once_and_read_inside() -> None:
    stream = Engine.create(TOY).stream(FRAMES, "?", **SHORT)
    with pytest.raises(EngineStateError, match="this stream is not open"):
        await stream.__anext__()
    async with stream:
        with pytest.raises(EngineStateError, match="can be entered once"):
            await stream.__aenter__()
    with pytest.raises(EngineStateError, match="this stream was left"):
        await stream.__anext__()


# ---- another event loop -------------------------------------------------------------------------------------------

Ask = Callable[[Engine], Coroutine[Any, Any, Any]]


async def stream(engine: Engine) -> None:
    async with engine.stream(FRAMES, "?"):
        pass


CALLS: dict[str, Ask] = {
    "answer": lambda engine: engine.answer(FRAMES, "?"),
    "stream": stream,
    "health": lambda engine: engine.health(),
    "aclose": lambda engine: engine.aclose(),
    "exit": lambda engine: engine.__aexit__(None, None, None),
}


@pytest.fixture(scope="module")
def thread() -> Any:
    """A thread with an event loop."""
    thread = LoopThread()
    yield thread
    thread.close()


@pytest.fixture(scope="module")
def elsewhere(thread: LoopThread) -> Any:
    """An engine that is open on the event loop of `thread`."""
    engine = Engine.create(TOY)
    call(thread.loop, engine.__aenter__())
    yield engine
    call(thread.loop, engine.aclose())


@pytest.mark.parametrize("ask", CALLS.values(), ids=CALLS.keys())
def test_another_event_loop_is_told_what_to_do(elsewhere: Engine, ask: Ask) -> None:
    with pytest.raises(EngineStateError, match=r"on another event loop: .* `await asyncio\.to_thread\(engine\.answer"):
        asyncio.run(ask(elsewhere))
    assert elsewhere.state is EngineState.OPEN


def test_a_stream_is_read_and_left_on_its_own_loop(elsewhere: Engine, thread: LoopThread) -> None:
    chunks = elsewhere.stream(FRAMES, "?", **SHORT)
    call(thread.loop, chunks.__aenter__())
    for use in (chunks.__anext__, lambda: chunks.__aexit__(None, None, None)):
        with pytest.raises(EngineStateError, match="on another event loop"):
            asyncio.run(use())
    call(thread.loop, chunks.__aexit__(None, None, None))


def test_an_engine_ends_with_the_loop_that_it_was_opened_on() -> None:
    engine = Engine.create(TOY)
    asyncio.run(engine.__aenter__())  # type: ignore[arg-type]
    for ask in CALLS.values():
        if ask not in (CALLS["aclose"], CALLS["exit"], CALLS["health"]):
            with pytest.raises(EngineStateError, match="this engine is closed: make another"):
                asyncio.run(ask(engine))
    assert engine.state is EngineState.CLOSED


def test_an_engine_whose_loop_was_left_without_an_end_says_so() -> None:
    loop = asyncio.new_event_loop()
    engine = Engine.create(TOY)
    loop.run_until_complete(engine.__aenter__())
    for ask in CALLS.values():
        with pytest.raises(EngineStateError, match="on which this engine was opened has ended"):
            asyncio.run(ask(engine))
    with pytest.raises(EngineStateError, match="on which this engine was opened has ended"):
        engine.answer_sync(FRAMES, "?")
    loop.run_until_complete(engine.aclose())
    loop.close()


# ---- threads without a loop ---------------------------------------------------------------------------------------


def in_threads(count: int, work: Callable[[], Any]) -> list[Any]:
    found: list[Any] = []
    threads = [threading.Thread(target=lambda: found.append(work())) for _ in range(count)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    return found


def streamed(engine: Engine) -> list[int]:
    with engine.stream(FRAMES, "?", **SHORT) as chunks:
        tokens = [token for chunk in chunks for token in chunk.tokens]
    assert list(chunks.answer.tokens) == tokens
    return tokens


def test_threads_ask_an_engine_that_is_open_on_a_loop(elsewhere: Engine) -> None:
    assert in_threads(3, lambda: list(elsewhere.answer_sync(FRAMES, "?", **SHORT).tokens)) == [EXPECTED] * 3
    assert in_threads(2, lambda: streamed(elsewhere)) == [EXPECTED] * 2


@pytest.mark.anyio
async def test_threads_ask_the_engine_of_a_loop_that_waits_for_them() -> None:
    async with Engine.create(TOY) as engine:
        answer = await asyncio.to_thread(engine.answer_sync, FRAMES, "?", **SHORT)
        assert list(answer.tokens) == await asyncio.to_thread(streamed, engine) == EXPECTED


def test_an_engine_is_opened_asked_and_closed_without_a_loop() -> None:
    with Engine.create(TOY) as engine:
        assert engine.state is EngineState.OPEN
        assert list(engine.answer_sync(FRAMES, "?", **SHORT).tokens) == streamed(engine) == EXPECTED
        with engine.stream(FRAMES, "?", max_tokens=100_000, ignore_eos=True) as chunks:
            assert next(chunks).tokens
        assert in_threads(2, lambda: streamed(engine)) == [EXPECTED] * 2
    assert engine.state is EngineState.CLOSED
    assert {toy.open_sessions for toy in ToyBackend.loaded.values()} == {0}
    with pytest.raises(EngineStateError, match="this engine is closed"):
        engine.answer_sync(FRAMES, "?")


def test_a_stream_of_an_engine_that_was_never_opened_needs_no_loop() -> None:
    engine = Engine.create(TOY)
    assert streamed(engine) == streamed(engine) == EXPECTED
    assert engine.state is EngineState.UNOPENED


def test_errors_pass_through_a_plain_with() -> None:
    with pytest.raises(ZeroDivisionError), Engine.create(TOY) as engine, engine.stream(FRAMES, "?") as chunks:
        next(chunks)
        _ = 1 / 0
    with pytest.raises(EngineStateError, match="`with engine.stream"):
        next(Engine.create(TOY).stream(FRAMES, "?"))


@pytest.mark.anyio
async def test_a_plain_with_inside_a_loop_says_what_to_use() -> None:
    with pytest.raises(EngineStateError, match="use `async with engine` there"), Engine.create(TOY):
        raise AssertionError
    with (
        pytest.raises(EngineStateError, match=r"use `async with engine\.stream\(\.\.\.\)` there"),
        Engine.create(TOY).stream(FRAMES, "?"),
    ):
        raise AssertionError
