"""An engine's process that is killed at any moment leaves no worker behind."""

from __future__ import annotations

import random
import subprocess
import sys
import textwrap
from pathlib import Path

import anyio
import psutil
import pytest
from anyio.to_thread import run_sync

from tests.chaos.storm import EMULATED, Figures, write
from tests.workers.conftest import until

pytestmark = [pytest.mark.anyio, pytest.mark.chaos, pytest.mark.timeout(400)]

SCRIPT = """
    import asyncio, sys
    from pvlm import Engine

    async def main():
        settings = {settings!r}
        async with Engine.create(settings, transport=sys.argv[1]) as engine:
            async def ask():
                while True:
                    await engine.answer(sys.argv[2], "What happens?", max_tokens=60)
            await asyncio.gather(ask(), ask(), ask())

    asyncio.run(main())
"""
CLIP = Path(__file__).parents[2] / "pvlm" / "bundled" / "clips" / "one-scene.mp4"


async def test_no_worker_outlives_its_engine(tmp_path: Path) -> None:
    """Ten engines, killed while they load, read videos and answer."""
    choose = random.Random(51)
    figures = Figures(name="parent killed")
    script = tmp_path / "engine.py"
    script.write_text(textwrap.dedent(SCRIPT).format(settings={**EMULATED, "backend": "emulated"}))
    for number in range(10):
        command = [sys.executable, str(script), ("ipc", "tcp")[number % 2], str(CLIP)]
        engine = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # noqa: ASYNC220
        try:
            await anyio.sleep(choose.uniform(0.5, 9.0))
            assert engine.poll() is None
            left = psutil.Process(engine.pid).children(recursive=True)
            engine.kill()
            await run_sync(engine.wait)
            figures.count("faults", f"kill the parent of {len(left)} processes")
            await until(lambda left=left: not any(map(_alive, left)), 30)
            figures.count("outcomes", "nothing left")
        finally:
            engine.kill()
            engine.wait()
    write(figures)
    assert figures.outcomes == {"nothing left": 10}


def _alive(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
