"""Models in worker processes: how they are seen, and that nothing of them is left behind."""

from __future__ import annotations

import gc
import os
import tempfile
from pathlib import Path

import anyio
import pytest

from pvlm import Engine, ModelError, PvlmError
from tests.support.pair import PAIR
from tests.support.processes import children
from tests.workers.conftest import FRAMES, LONG, pending_tasks, until, workers

EMULATED = {"target": '{"pass_ms": 1}', "draft": '{"pass_ms": 1}', "backend": "emulated"}
pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("_nothing_left")]


async def test_workers_show_what_they_are_and_leave_nothing(transport: str) -> None:
    """Two processes that a person can tell apart in ``ps``, and no file."""
    tasks = pending_tasks()
    engine = Engine.create(PAIR, transport=transport)
    async with engine:
        found = workers()
        assert set(found) == {"target", "draft"}
        for role, process in found.items():
            line = " ".join(process.cmdline())
            assert f"pvlm worker --role {role} --model " in line
            assert f"/{role} --backend auto --connect {transport}://" in line
            assert process.ppid() == os.getpid()
        assert list(Path(tempfile.gettempdir()).iterdir()) == []
        answer = await engine.answer(FRAMES, "What happens?", max_tokens=5, ignore_eos=True)
        assert len(answer.tokens) == 5
    assert workers() == {}
    assert pending_tasks() == tasks


async def test_nothing_is_left_after_an_error_in_the_body() -> None:
    tasks = pending_tasks()

    async def fail() -> None:
        async with Engine.create(PAIR, method="ar") as engine, engine.stream(FRAMES, "?", **LONG) as chunks:
            await chunks.__anext__()
            _ = 1 / 0

    with pytest.raises(ZeroDivisionError):
        await fail()
    assert children() == []
    assert pending_tasks() == tasks


async def test_no_descriptor_is_left() -> None:
    """The first engine opens a few for good (those of ZeroMQ itself); the next one none."""
    left = []
    for _ in range(2):
        async with Engine.create(target=PAIR["draft"]):
            pass
        gc.collect()
        await until(lambda: not children())
        left.append(len(os.listdir("/proc/self/fd")))
    assert left[1] <= left[0]


async def test_a_worker_that_must_be_killed_is_gone_after_closing(monkeypatch: pytest.MonkeyPatch) -> None:
    """However little time it has to stop by itself: a kill is waited for by its own, longer limit."""
    monkeypatch.setattr("pvlm.workers.launch.STOP_TIMEOUT_S", 0.0)
    async with Engine.create(EMULATED, method="ar"):
        assert set(workers()) == {"target"}
    assert children() == []


@pytest.mark.parametrize("seconds", [0.0, 0.7])
async def test_nothing_is_left_after_cancellation_during_loading(seconds: float) -> None:
    """At once, while the workers start, and while they import."""
    tasks = pending_tasks()
    with anyio.move_on_after(seconds) as scope:
        async with Engine.create(PAIR):
            await anyio.sleep_forever()
    assert scope.cancelled_caught
    assert children() == []
    assert pending_tasks() == tasks


async def test_nothing_is_left_after_a_cancelled_bare_answer() -> None:
    tasks = pending_tasks()
    with anyio.CancelScope() as scope:
        async with Engine.create(PAIR, method="ar").stream(FRAMES, "?", **LONG) as chunks:
            await chunks.__anext__()
            scope.cancel()
            await anyio.sleep_forever()
    assert scope.cancelled_caught
    assert children() == []
    assert pending_tasks() == tasks


async def test_loading_that_takes_too_long_is_an_error() -> None:
    with pytest.raises(ModelError, match=r"was not loaded within 0\.05 s \(start_timeout_s\)"):
        async with Engine.create(PAIR, start_timeout_s=0.05):
            raise AssertionError
    assert children() == []


async def test_a_worker_that_dies_while_it_loads_is_an_error_that_says_how() -> None:
    async with anyio.create_task_group() as tasks:

        async def kill() -> None:
            (await until(lambda: workers().get("target"))).kill()

        tasks.start_soon(kill)
        with pytest.raises(PvlmError, match="target worker for .* was lost while it loaded: killed by signal 9"):
            async with Engine.create(PAIR, method="ar"):
                raise AssertionError
    assert children() == []
