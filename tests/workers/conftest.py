"""Looking after processes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import anyio
import numpy as np
import psutil
import pytest

from tests.support.plugin import toy_plugin
from tests.support.processes import nothing_left

FRAMES = np.random.default_rng(0).integers(0, 255, (4, 32, 32, 3), dtype=np.uint8)
LONG: dict[str, Any] = {"max_tokens": 400, "ignore_eos": True}
"""Options of an answer that is not over before something can be done to it."""
PATIENCE_S = 60.0
TOY: dict[str, Any] = {"target": "0@3", "draft": "0.5@1", "backend": "toy"}
"""Settings of an engine on toys; a pass takes 3 ms, so there is time to do something to a long answer."""


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def _toys(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The plug-ins ``toy`` and ``broken`` can be used, by worker processes too."""
    with toy_plugin(tmp_path_factory.mktemp("site")):
        yield


@pytest.fixture(params=["ipc", "tcp"])
def transport(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def workers(parent: int | None = None) -> dict[str, psutil.Process]:
    """The workers of a process (this one), by role."""
    found = {}
    for child in psutil.Process(parent).children(recursive=True):
        try:
            line = child.cmdline()
        except psutil.Error:
            continue
        if "worker" in line:
            found[line[line.index("--role") + 1]] = child
    return found


async def until(condition: Callable[[], Any], patience_s: float = PATIENCE_S) -> Any:
    """Wait until something is so; its value. An end to the patience is a failure."""
    with anyio.fail_after(patience_s):
        while not (value := condition()):
            await anyio.sleep(0.02)
    return value


@pytest.fixture
def _nothing_left(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with nothing_left(monkeypatch, tmp_path_factory.mktemp("t")):
        yield


def pending_tasks() -> set[str]:
    """Names of the tasks of this event loop, but for the one that asks."""
    return {task.get_name() for task in asyncio.all_tasks() - {asyncio.current_task()}}  # type: ignore[arg-type]
