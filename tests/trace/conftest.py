"""Toy engines to trace, and a browser to look at the pages with."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pvlm import Answer, Engine
from pvlm.trace import Trace
from tests.support.plugin import DRAFT, TARGET, toy_plugin

TOY: dict[str, Any] = {"target": TARGET, "draft": DRAFT, "backend": "toy", "transport": "inproc"}
FRAMES = np.full((4, 40, 60, 3), (200, 30, 40), np.uint8)
"""All of one colour, so that a picture shows what was done to it."""


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session", autouse=True)
def _toys(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with toy_plugin(tmp_path_factory.mktemp("site")):
        yield


async def traced(
    question: str = "What?", *, target: str = TARGET, draft: str = DRAFT, **options: Any
) -> tuple[Answer, Trace]:
    """An answer of the toys, and its trace."""
    trace = Trace()
    async with Engine.create(**{**TOY, "target": target, "draft": draft}) as engine:
        answer = await engine.answer(FRAMES, question, trace=trace, **{"max_tokens": 40, "window": 4, **options})
    return answer, trace


@pytest.fixture(scope="session")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """Open a page in headless Chromium: its DOM, or with ``screenshot`` a picture of it in that file."""
    program = shutil.which("chromium")
    if program is None:
        pytest.skip("chromium is not installed (Debian: apt-get install chromium)")

    def look(address: str, screenshot: Path | None = None) -> str:
        profile = tmp_path_factory.mktemp("profile")
        command = [program, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
        command += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
        command += [f"--user-data-dir={profile}", "--hide-scrollbars", "--window-size=1400,800"]
        command += ["--dump-dom"] if screenshot is None else [f"--screenshot={screenshot}"]
        done = subprocess.run([*command, address], capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return look
