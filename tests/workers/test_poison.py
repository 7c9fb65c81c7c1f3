"""Processes that are killed by one question, or while they load."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import anyio
import pytest

from pvlm import Engine, ModelError
from pvlm.actors.mark import SharedMark, shared_memory
from tests.support.toy import ToyBackend
from tests.workers.conftest import FRAMES, TOY, until

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("_nothing_left", "_toys")]
OPTIONS = {"max_tokens": 40, "ignore_eos": True}
EXPECTED = ToyBackend().greedy(40, end_tokens=())
BROKEN = {**TOY, "backend": "broken"}
DIES = """
import os, signal, sys
from pvlm.actors.mark import SharedMark
mark = SharedMark(int(sys.argv[1]))
for session in range(1, 8):
    mark.set(session, 10 * session)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_mark_outlives_a_process_that_is_killed_right_after_it_was_set() -> None:
    memory = shared_memory()
    mark = SharedMark(memory)
    assert mark.read() == ()
    done = subprocess.run([sys.executable, "-c", DIES, str(memory)], pass_fds=[memory], check=False)
    assert done.returncode == -9
    assert mark.read() == (7, 70)


async def test_a_question_that_kills_the_target_fails_alone() -> None:
    """The first time in a pass that it shares, which counts against nobody; after that in passes of its own."""
    async with Engine.create(BROKEN, transport="tcp", draft=None) as engine:
        async with engine.stream(FRAMES, "?", max_tokens=100_000, ignore_eos=True) as innocent:
            await innocent.__anext__()
            with pytest.raises(ModelError, match="lost 2 times in the work for this answer: killed by signal 9"):
                await engine.answer(FRAMES, "kill target extend", **OPTIONS)
            await innocent.__anext__()
        assert list((await engine.answer(FRAMES, "?", **OPTIONS)).tokens) == EXPECTED
        assert (await engine.health())["target"].restarts == 3


async def test_a_draft_that_is_killed_while_it_loads_is_started_again(tmp_path: Path) -> None:
    async with Engine.create(BROKEN, draft=f"kill {tmp_path / 'once'}") as engine:
        assert set(engine.models) == {"target", "draft"}
        health = (await engine.health())["draft"]
        assert health.restarts == 1
        assert "was lost while it loaded: killed by signal 9" in health.reason


async def test_a_worker_that_hangs_while_it_loads_is_noticed() -> None:
    with pytest.raises(ModelError, match=r"it has neither loaded nor computed for 0.5 s \(hang_timeout_s\)"):
        with anyio.fail_after(50):
            async with Engine.create(BROKEN, target="hang", draft=None, hang_timeout_s=0.5):
                raise AssertionError


async def test_a_hang_in_the_work_for_an_answer_that_was_left_is_no_crash() -> None:
    settings = {**BROKEN, "draft": None, "target_restarts": 0, "hang_timeout_s": 1.0, "close_timeout_s": 100.0}
    async with Engine.create(settings) as engine:
        with anyio.move_on_after(0.2):
            await engine.answer(FRAMES, "sleep target open", **OPTIONS)
        await until(lambda: "target" in engine.models)
        assert list((await engine.answer(FRAMES, "?", **OPTIONS)).tokens) == EXPECTED
        assert (await engine.health())["target"].restarts == 1
