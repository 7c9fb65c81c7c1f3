from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from video_files import make_video

from pvlm.video import Video, read_video
from pvlm_protocols.backend import FrameDefaults

FILES = Path(__file__).parent / "files"


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with plain.mp4 (index at the end) and faststart.mp4 (index in front)."""
    folder = tmp_path_factory.mktemp("videos")
    make_video(folder / "plain.mp4")
    make_video(folder / "faststart.mp4", container={"movflags": "faststart"})
    return folder


Read = Callable[..., Awaitable[Video]]


@pytest.fixture
def read() -> Read:
    """`read_video` with every option left out that is not given."""

    def call(source: Any, **options: Any) -> Awaitable[Video]:
        given: dict[str, Any] = {"num_frames": None, "fps": None, "start": None, "end": None, "timeout_s": 30}
        return read_video(source, **{**given, "defaults": FrameDefaults(num_frames=8), **options})

    return call


def children() -> set[int]:
    """Our child processes, zombies included."""
    import psutil

    return {child.pid for child in psutil.Process().children(recursive=True)}


@pytest.fixture
def nothing_left() -> Any:
    """Neither a process nor a file descriptor is left behind by the test."""
    import os

    before, open_before = children(), set(os.listdir("/proc/self/fd"))
    yield
    assert children() <= before
    if sys.platform == "linux":
        # an event loop that is still open has a few of its own
        assert len(set(os.listdir("/proc/self/fd")) - open_before) <= 6
