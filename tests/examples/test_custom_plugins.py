"""The examples of a pruner and of a video reader: found by their entry points, and used through the engine."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pvlm import Engine, VideoError
from pvlm.plugins import load_plugin, plugin_names
from pvlm_protocols.backend import EarlyStates
from tests.support.plugin import DRAFT, TARGET, plugins

from .conftest import EXAMPLES

TOY: dict[str, Any] = {
    "target": TARGET,
    "draft": DRAFT,
    "backend": "tests.support.toy:ToyBackend",
    "transport": "inproc",
}


@contextmanager
def installed(example: str, folder: Path) -> Iterator[None]:
    """The example's source on the path, with the entry points that its ``pyproject.toml`` registers."""
    project = tomllib.loads((EXAMPLES / example / "pyproject.toml").read_text())["project"]
    lines = []
    for group, points in project["entry-points"].items():
        lines += [f"[{group}]", *(f"{name} = {value}" for name, value in points.items())]
    (source,) = (EXAMPLES / example / "src").iterdir()
    (folder / source.name).symlink_to(source)
    with plugins(folder, project["name"], "\n".join(lines)):
        yield


@pytest.fixture
def motion(tmp_path: Path) -> Iterator[None]:
    with installed("custom_pruner", tmp_path):
        yield


@pytest.fixture
def animated(tmp_path: Path) -> Iterator[None]:
    with installed("custom_reader", tmp_path):
        yield


@pytest.mark.anyio
async def test_the_pruner_chooses_what_the_draft_sees(motion: None) -> None:
    frames = np.zeros((4, 8, 8, 3), np.uint8)
    async with Engine.create(TOY, prune="motion", prune_ratio=0.75) as engine:
        answer = await engine.answer(frames, "What moves?", max_tokens=20)
        plain = await engine.answer(frames, "What moves?", max_tokens=20, method="ar")
    stats = answer.stats
    assert (stats.prune, stats.kept_video_tokens, stats.video_tokens) == ("motion", 4, 16)
    assert stats.draft_lost == ""
    assert answer.tokens == plain.tokens


def test_it_keeps_what_moves(motion: None) -> None:
    assert "motion" in plugin_names("pvlm.pruners")
    first = torch.zeros(3, 4, 8)
    first[1, 2] = 1.0  # the third place changes from the first frame to the second, and back
    first[2, 1] = 0.5
    video = first.flatten(0, 1)
    states = EarlyStates(1, video, video, torch.zeros(1, 8), torch.zeros(1, 8), None, 3)
    pruner = load_plugin("pvlm.pruners", "motion")()
    assert pruner.select(12, 7, states, 0).nonzero()[:, 0].tolist() == [0, 1, 2, 3, 6, 9, 10]


@pytest.mark.anyio
async def test_the_reader_reads_animated_images(animated: None, tmp_path: Path) -> None:
    images = [Image.new("RGB", (8, 6), (40 * number, 0, 0)) for number in range(6)]
    path = tmp_path / "loop.gif"
    images[0].save(path, save_all=True, append_images=images[1:], duration=200)
    (tmp_path / "notes.gif").write_text("no image")
    async with Engine.create(TOY, video_reader="animated") as engine:
        answer = await engine.answer(path, "What happens?", num_frames=3, start=0.3, max_tokens=5)
        with pytest.raises(VideoError, match="it is no image that Pillow knows; use another video_reader"):
            await engine.answer(tmp_path / "notes.gif", "What happens?")
    assert (answer.stats.source_frames, answer.stats.source_fps) == (6, pytest.approx(5.0))
    assert answer.stats.frame_indices == (1, 3, 5)  # the frame at 0.3 s began at 0.2 s
    reader = load_plugin("pvlm.video_readers", "animated")(os.fspath(path))
    assert reader.read([1, 4])[:, 0, 0, 0] == pytest.approx([40, 160], abs=2)
    reader.finish()
