"""Processes that die: the draft is only an accelerator, the target is not, and nobody outlives the engine."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import anyio
import psutil
import pytest
from anyio.to_thread import run_sync

from pvlm import Engine, TargetLost
from shapes.clips import write_clip
from tests.workers.conftest import FRAMES, LONG, PATIENCE_S, children, until, workers

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("_nothing_left")]
QUESTION = "What happens?"


async def test_a_killed_draft_changes_no_token_and_is_started_again(transport: str) -> None:
    async with Engine.create(transport=transport) as engine:
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
        after = await engine.answer(FRAMES, QUESTION, **LONG)
        assert after.tokens == expected.tokens
        assert after.stats.draft_lost == ""
        assert after.stats.accepted_tokens > 0


async def test_a_draft_that_may_not_be_started_again_is_done_without() -> None:
    async with Engine.create(draft_restarts=0) as engine:
        expected = await engine.answer(FRAMES, QUESTION, max_tokens=30, ignore_eos=True)
        workers()["draft"].kill()
        await until(lambda: "draft" not in engine.models)
        answer = await engine.answer(FRAMES, QUESTION, max_tokens=30, ignore_eos=True)
        assert answer.tokens == expected.tokens
        assert answer.stats.drafted_tokens == 0
        assert "killed by signal 9" in answer.stats.draft_lost
        assert set(workers()) == {"target"}


async def test_a_killed_target_ends_its_answers(transport: str) -> None:
    """Those under way and those to come; the engine still closes."""
    async with Engine.create(transport=transport) as engine:

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
    assert children() == []


SCRIPT = """
    import asyncio, sys
    import numpy as np
    from pvlm import Engine

    async def main():
        async with Engine.create(transport=sys.argv[1]) as engine:
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
    script.write_text(textwrap.dedent(SCRIPT))
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
        # Nobody can clean up after a kill: the directories of its sockets stay.
        shutil.rmtree(os.environ["TMPDIR"])
        os.mkdir(os.environ["TMPDIR"])


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
        [*command, "--temperature", "3", "--seed", "1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
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
        assert not any(alive(worker) for worker in left)
    finally:
        process.kill()
        process.communicate()
