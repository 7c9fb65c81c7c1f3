"""Engines, and clips to ask them about."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from pvlm import Engine
from pvlm.actors.actor import Actor
from pvlm.video import read_video
from pvlm_protocols.backend import FrameDefaults
from shapes.clips import write_clip
from shapes.rendering import render
from shapes.world import questions, sample_clip
from tests.support.pair import PAIR
from tests.support.plugin import DRAFT, TARGET, toy_plugin
from tests.support.toy import ToyBackend


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def bombs(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The roles whose actors fail at their next turn, outside any session."""
    lit: set[str] = set()
    original = Actor.turn

    def turn(self: Actor, timeout_s: float | None = None) -> None:
        if self.role in lit:
            lit.remove(self.role)
            raise RuntimeError(f"the {self.role} went off")
        original(self, timeout_s)

    monkeypatch.setattr(Actor, "turn", turn)
    return lit


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> Iterator[None]:
    """Models are tiny here: threads would only get in each other's way."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session", autouse=True)
def _toys(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with toy_plugin(tmp_path_factory.mktemp("site")):
        yield


TOY: dict[str, Any] = {
    "target": TARGET, "draft": DRAFT, "backend": "toy", "transport": "inproc", "window": 4, "outcomes": 4,
}  # fmt: skip
"""Toys take no time, so that with a window of its own choice a draft may rest for a whole answer: it is fixed. So is
the number of outcomes, which a fixed window would not prepare by itself.
"""
FRAMES = np.zeros((4, 8, 8, 3), np.uint8)
"""What the toys are asked about; they do not look at it."""


@pytest.fixture(scope="module")
async def opened(anyio_backend: str) -> AsyncIterator[tuple[Engine, dict[str, ToyBackend]]]:
    async with Engine.create(**TOY) as engine:
        yield engine, dict(ToyBackend.loaded)


@pytest.fixture(scope="module")
def toys(opened: tuple[Engine, dict[str, ToyBackend]]) -> Engine:
    """An open engine on toy models, in this process."""
    return opened[0]


@pytest.fixture(scope="module")
def models(opened: tuple[Engine, dict[str, ToyBackend]]) -> dict[str, ToyBackend]:
    """The models of `toys`, by role."""
    return opened[1]


@pytest.fixture(scope="module")
async def small(anyio_backend: str) -> AsyncIterator[Engine]:
    """An open engine on the small pair, in this process."""
    async with Engine.create(PAIR, transport="inproc", threads=1, draft_threads=1) as engine:
        yield engine


@dataclass(frozen=True, eq=False)
class Sample:
    """An mp4 file, a question, and the frames that the file is decoded to."""

    path: Path
    question: str
    scenes: int
    frames: NDArray[np.uint8]
    timestamps_s: tuple[float, ...]


# Number of scenes and of frames of each clip.
LENGTHS = [(1, 8), (1, 10), (2, 12), (2, 16), (2, 20), (3, 24), (3, 28), (4, 32), (5, 40), (6, 48), (7, 56), (8, 64)]


@pytest.fixture(scope="session")
async def samples(anyio_backend: str, tmp_path_factory: pytest.TempPathFactory) -> list[Sample]:
    """Twelve clips; most are to be described in full, which gives the longest answers."""
    folder = tmp_path_factory.mktemp("clips")
    made = []
    for number, (scenes, frames) in enumerate(LENGTHS):
        rng = random.Random(number)
        clip = sample_clip(rng, scenes, frames)
        path = folder / f"{number:02d}.mp4"
        write_clip(path, render(clip, 112))
        asked = questions(clip)[0 if number % 4 else 2].text
        everything = FrameDefaults(128, consecutive=True)
        video = await read_video(path, num_frames=None, fps=None, start=None, end=None, defaults=everything)
        made.append(Sample(path, asked, scenes, video.frames, video.timestamps_s))
    return made
