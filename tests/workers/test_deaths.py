"""Processes that die or hang: answers go on as they were, as long as a target can be started again; and nobody outlives
the engine.
"""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import anyio
import psutil
import pytest
from anyio.to_thread import run_sync

from pvlm import Engine, RemoteTraceback, TargetLost
from shapes.clips import write_clip
from tests.support.pair import FLAGS, PAIR
from tests.support.processes import children
from tests.support.toy import ToyBackend
from tests.workers.conftest import FRAMES, LONG, PATIENCE_S, TOY, until, workers

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("_nothing_left", "_toys")]
QUESTION = "What happens?"


async def test_a_killed_draft_changes_no_token_and_is_started_again(transport: str) -> None:
    async with Engine.create(PAIR, transport=transport) as engine:
        expected = await engine.answer(FRAMES, QUESTION, method="ar", **LONG)
        first = workers()["draft"]
        async with engine.stream(FRAMES, QUESTION, **LONG) as chunks:
            await chunks.__anext__()
            first.kill()
            async for _ in chunks:
                pass
        answer = chunks.answer
        assert answer.tokens == expected.tokens
        assert answer.text == expected.text
        assert "killed by signal 9" in answer.stats.draft_lost
        # An answer in between goes without a draft, or has the new one already.
        between = await engine.answer(FRAMES, QUESTION, max_tokens=20, ignore_eos=True)
        assert between.tokens == expected.tokens[:20]
        await until(lambda: "draft" in engine.models)
        assert workers()["draft"].pid != first.pid
        after = await engine.answer(FRAMES, QUESTION, window=4, **LONG)  # fixed: the draft does not rest
        assert after.tokens == expected.tokens
        assert after.stats.draft_lost == ""
        assert after.stats.accepted_tokens > 0


async def test_a_draft_that_may_not_be_started_again_is_done_without() -> None:
    async with Engine.create(PAIR, draft_restarts=0) as engine:
        expected = await engine.answer(FRAMES, QUESTION, max_tokens=30, ignore_eos=True)
        workers()["draft"].kill()
        await until(lambda: "draft" not in engine.models)
        answer = await engine.answer(FRAMES, QUESTION, max_tokens=30, ignore_eos=True)
        assert answer.tokens == expected.tokens
        assert answer.stats.drafted_tokens == 0
        assert "killed by signal 9" in answer.stats.draft_lost
        assert set(workers()) == {"target"}


async def test_a_draft_that_was_killed_joins_the_same_answer() -> None:
    async with Engine.create(TOY) as engine:
        async with engine.stream(FRAMES, QUESTION, max_tokens=100_000, ignore_eos=True) as chunks:
            tokens = list((await chunks.__anext__()).tokens)
            workers()["draft"].kill()
            async for chunk in chunks:
                tokens += chunk.tokens
                restarted = "draft" in engine.models and (await engine.health())["draft"].restarts
                if restarted and len(chunk.tokens) > 2:  # more than the target writes alone
                    break
            assert (await engine.health())["draft"].sessions == 1
        assert tokens == ToyBackend().greedy(len(tokens), end_tokens=())


@pytest.mark.parametrize(
    ("transport", "sampling"), [("ipc", {}), ("tcp", {"temperature": 1.0, "seed": 5})], ids=["greedy", "gumbel"]
)
async def test_a_killed_target_changes_no_token(transport: str, sampling: dict[str, Any]) -> None:
    """Of any of two answers that are under way, nor of one that comes while there is no target."""
    options: dict[str, Any] = {"max_tokens": 300, "ignore_eos": True, **sampling}
    texts: list[str] = []
    async with Engine.create(TOY, transport=transport) as engine:
        expected = await engine.answer(FRAMES, QUESTION, **options)

        async def ask() -> None:
            async with engine.stream(FRAMES, QUESTION, **options) as chunks:
                texts.append("".join([chunk.text async for chunk in chunks]))
            assert chunks.answer.tokens == expected.tokens
            assert chunks.answer.stats.target_recoveries == 1

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ask)
            tasks.start_soon(ask)
            await anyio.sleep(0.2)
            first = workers()["target"]
            first.kill()
            await until(lambda: "target" not in engine.models)
            assert (await engine.answer(FRAMES, QUESTION, **options)).tokens == expected.tokens
        assert texts == [expected.text] * 2
        health = await engine.health()
        assert health["target"].restarts == 1
        assert health["target"].pid == workers()["target"].pid != first.pid
        assert [health[role].sessions for role in ("target", "draft")] == [0, 0]


@pytest.mark.parametrize("role", ["target", "draft"])
async def test_a_worker_that_hangs_is_started_again(role: str) -> None:
    """Also where the target waits for the draft as long as it takes: under plain speculative decoding."""
    options: dict[str, Any] = {"max_tokens": 300, "ignore_eos": True, "method": "sd"}
    async with Engine.create(TOY, hang_timeout_s=1.0) as engine:
        async with engine.stream(FRAMES, QUESTION, **options) as chunks:
            await chunks.__anext__()
            stopped = workers()[role]
            stopped.suspend()
            async for _ in chunks:
                pass
        assert list(chunks.answer.tokens) == ToyBackend().greedy(300, end_tokens=())
        await until(lambda: role in engine.models)
        health = (await engine.health())[role]
        assert "it hangs: nothing was heard of it for 1 s (hang_timeout_s)" in health.reason
        assert health.restarts == 1
        assert not stopped.is_running()


async def test_a_busy_worker_is_not_taken_to_hang() -> None:
    """Four layers of 0.5 s are answered for between them; a whole prefill would be too long."""
    async with Engine.create(TOY, target="0@500", draft=None, hang_timeout_s=1.0) as engine:
        answer = await engine.answer(FRAMES, QUESTION, max_tokens=2, ignore_eos=True)
        assert answer.stats.prefill_s > 1.5
        assert answer.stats.target_recoveries == 0


async def test_without_restarts_a_killed_target_ends_its_answers() -> None:
    """Those under way and those to come; the engine still closes."""
    async with Engine.create(TOY, draft=None, target_restarts=0) as engine:

        async def kill_and_read_on() -> None:
            async with engine.stream(FRAMES, QUESTION, **LONG) as chunks:
                await chunks.__anext__()
                workers()["target"].kill()
                async for _ in chunks:
                    pass

        with pytest.raises(TargetLost, match=r"in the middle of an answer: killed by signal 9"):
            await kill_and_read_on()
        with pytest.raises(TargetLost, match=r"is gone: killed by signal 9"):
            await engine.answer(FRAMES, QUESTION)
        assert (await engine.health())["target"].state == "lost"
    assert children() == []


async def test_a_target_that_cannot_be_started_again_is_lost_with_its_own_traceback_as_the_cause(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "target"
    shutil.copytree(PAIR["draft"], folder)
    async with Engine.create(target=str(folder), target_restarts=1) as engine:
        async with engine.stream(FRAMES, QUESTION, **LONG) as chunks:
            await chunks.__anext__()
            (folder / "model.safetensors").unlink()
            workers()["target"].kill()
            with pytest.raises(TargetLost, match="killed by signal 9; started again: cannot load the target") as lost:
                async for _ in chunks:
                    pass
        assert isinstance(lost.value.__cause__, RemoteTraceback)
        assert "CheckpointError" in str(lost.value.__cause__)
    assert children() == []


SCRIPT = """
    import asyncio, sys
    import numpy as np
    from pvlm import Engine

    async def main():
        async with Engine.create({settings!r}, transport=sys.argv[1]) as engine:
            frames = np.zeros((2, 16, 16, 3), np.uint8)
            async with engine.stream(frames, "What happens?", max_tokens=5000, ignore_eos=True) as chunks:
                await chunks.__anext__()
                print("writing", flush=True)
                if sys.argv[2] == "wait":
                    await asyncio.sleep(600)
                async for chunk in chunks:
                    pass

    asyncio.run(main())
"""


@pytest.mark.parametrize(("transport", "doing"), [("ipc", "wait"), ("tcp", "read")])
async def test_workers_go_when_their_engine_is_killed(transport: str, doing: str, tmp_path: Path) -> None:
    script = tmp_path / "engine.py"
    script.write_text(textwrap.dedent(SCRIPT).format(settings=PAIR))
    command = [sys.executable, str(script), transport, doing]
    engine = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)  # noqa: ASYNC220
    try:
        assert engine.stdout is not None
        with anyio.fail_after(PATIENCE_S):
            while await run_sync(engine.stdout.readline) != "writing\n":  # the log of the library is in there too
                assert engine.poll() is None
        left = workers(engine.pid)
        assert set(left) == {"target", "draft"}
        engine.kill()
        await run_sync(engine.wait)
        await until(lambda: not any(alive(process) for process in left.values()), 30)
    finally:
        engine.kill()
        engine.wait()
        engine.stdout.close()


def alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.parametrize("when", ["loading", "writing"])
async def test_ctrl_c_ends_the_command_without_a_traceback(when: str, tmp_path: Path) -> None:
    """With the status that shells expect, and without a process left."""
    write_clip(tmp_path / "clip.mp4", FRAMES)
    command = [sys.executable, "-m", "pvlm", "answer", str(tmp_path / "clip.mp4"), QUESTION, "--max-tokens", "15000"]
    process = subprocess.Popen(  # noqa: ASYNC220
        [*command, *FLAGS, "--temperature", "3", "--seed", "1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # these tests may run where it is ignored
    )
    try:
        assert process.stdout is not None
        with anyio.fail_after(PATIENCE_S):
            if when == "loading":
                await until(lambda: workers(process.pid))
            else:
                await run_sync(process.stdout.read, 1)
        left = list(workers(process.pid).values())
        process.send_signal(signal.SIGINT)
        with anyio.fail_after(PATIENCE_S):
            _, said = await run_sync(process.communicate)
        assert process.returncode == 130
        assert b"Traceback" not in said
        assert said.decode().strip().endswith("pvlm: interrupted")
        with anyio.fail_after(PATIENCE_S):
            await until(lambda: not any(alive(worker) for worker in left))
    finally:
        process.kill()
        process.communicate()
