"""A question that a worker on another host does not survive, however often somebody starts the worker again."""

from __future__ import annotations

from pathlib import Path

import anyio
import pytest

from pvlm import Engine
from tests.support.plugin import toy_plugin
from tests.support.toy import ToyBackend
from tests.workers.conftest import FRAMES, TOY, until
from tests.workers.remote_workers import free_port, remote_worker

pytestmark = [pytest.mark.anyio, pytest.mark.chaos, pytest.mark.timeout(400)]


async def test_it_is_not_opened_again_after_the_second_death(tmp_path: Path) -> None:
    endpoint, starts = f"tcp://127.0.0.1:{free_port()}", 0

    async def keep_a_worker_running() -> None:
        nonlocal starts
        while True:
            starts += 1
            with remote_worker("draft", "0.5@1", endpoint, tmp_path / f"log {starts}", backend="broken") as worker:
                while worker.process.poll() is None:
                    await anyio.sleep(0.05)

    settings = {**TOY, "backend": "broken", "transport": "inproc", "draft_listen": endpoint}
    with toy_plugin(tmp_path / "site"):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(keep_a_worker_running)
            async with Engine.create(settings) as engine:
                tokens, since = list[int](), 0
                async with engine.stream(FRAMES, "kill draft open", max_tokens=100_000, ignore_eos=True) as chunks:
                    async for chunk in chunks:
                        tokens += chunk.tokens
                        since = since or (len(tokens) if starts == 3 and "draft" in engine.models else 0)
                        if since and len(tokens) > since + 1000:  # it would have died again
                            break
                assert tokens == ToyBackend().greedy(len(tokens), end_tokens=())
                answer = await engine.answer(FRAMES, "?", max_tokens=400, ignore_eos=True, window=4)
                assert answer.stats.accepted_tokens > 0
                await until(lambda: "draft" in engine.models)
                assert starts == 3
            tasks.cancel_scope.cancel()
