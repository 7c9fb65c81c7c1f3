"""A clip, and the target's own answer about it, which every example must give."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from pvlm import Answer, Engine
from shapes.clips import write_clip
from shapes.rendering import render
from shapes.world import sample_clip

EXAMPLES = Path(__file__).parents[2] / "examples"
QUESTION = "What happens in the video?"


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    write_clip(path, render(sample_clip(random.Random(3), scenes=3), size=112))
    return path


@pytest.fixture(scope="session")
def reference(clip: Path) -> Answer:
    """Of the target alone; on one thread, for more would wait for each other where the cores are busy."""
    return Engine.create(method="ar", threads=1).answer_sync(clip, QUESTION)
