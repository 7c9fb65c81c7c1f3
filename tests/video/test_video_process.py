from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import anyio
import psutil
import pytest
from conftest import Read, children

from pvlm.errors import OptionError, RemoteTraceback, VideoError
from pvlm.video import Room

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("nothing_left")]


@pytest.fixture
def some_file(tmp_path: Path) -> Path:
    path = tmp_path / "video"
    path.write_text("anything")
    return path


async def test_a_plug_in_is_found_by_import_path(read: Read, some_file: Path) -> None:
    video = await read(some_file, reader="fake_readers:WellBehaved", num_frames=3)
    assert video.frames[:, 0, 0, 0].tolist() == [0, 4, 9]
    assert video.timestamps_s == (0.0, 0.4, 0.9)


async def test_a_plug_in_is_found_by_entry_point(
    read: Read, some_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    information = tmp_path / "site" / "mine-1.0.dist-info"
    information.mkdir(parents=True)
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1.0\n")
    (information / "entry_points.txt").write_text("[pvlm.video_readers]\nmine = fake_readers:WellBehaved\n")
    monkeypatch.syspath_prepend(str(information.parent))
    assert (await read(some_file, reader="mine")).source_frames == 10
    with pytest.raises(
        OptionError,
        match=r"no plug-in 'yours' in group pvlm.video_readers: use one of auto, decord, mine, pictures, pyav",
    ):
        await read(some_file, reader="yours")


async def test_a_missing_decoder_is_named(
    read: Read, videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "decord.py").write_text("raise ModuleNotFoundError('no', name='decord')")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(VideoError, match="needs the package 'decord', which is not installed"):
        await read(videos / "plain.mp4", reader="decord")


async def test_time_limit_kills(read: Read, some_file: Path) -> None:
    began = time.monotonic()
    with pytest.raises(VideoError, match=r"took longer than 1.5 s \(decode_timeout_s\)"):
        await read(some_file, reader="fake_readers:Sleeping", timeout_s=1.5)
    assert time.monotonic() - began < 10


def _started(some_file: Path) -> int:
    """The process id of a `fake_readers.Sleeping`, once it sleeps."""
    deadline = time.monotonic() + 20
    while not (text := some_file.read_text()).isdigit():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return int(text)


async def test_cancellation_kills(read: Read, some_file: Path) -> None:
    async with anyio.create_task_group() as group:

        async def task() -> None:
            await read(some_file, reader="fake_readers:Sleeping")

        group.start_soon(task)
        pid = await anyio.to_thread.run_sync(_started, some_file)
        assert pid in children()
        group.cancel_scope.cancel()
    assert not psutil.pid_exists(pid)


async def test_the_event_loop_goes_on(read: Read, videos: Path) -> None:
    longest, last = 0.0, time.monotonic()

    async def tick() -> None:
        nonlocal longest, last
        while True:
            await anyio.sleep(0.005)
            now = time.monotonic()
            longest, last = max(longest, now - last), now

    async with anyio.create_task_group() as group:
        group.start_soon(tick)
        began = time.monotonic()
        await read((videos / "plain.mp4").read_bytes(), num_frames=60)
        took = time.monotonic() - began
        group.cancel_scope.cancel()
    assert longest < max(0.6 * took, 0.1)


@pytest.mark.parametrize(
    ("reader", "reason", "cause"),
    [
        ("Crashing", r"was ended by signal 11 \(SIGSEGV\)", None),
        ("Leaving", "ended with exit status 7 and no result", "so long"),
        ("Failing", "'fake_readers:Failing' failed: RuntimeError: frames .* not to my taste", "in read"),
        ("Short", "failed: TypeError: read gave uint8", None),
        ("Empty", "it has no frames", None),
        ("Missing", "cannot be imported: AttributeError", None),
    ],
)
async def test_bad_readers_give_an_error(
    read: Read, some_file: Path, reader: str, reason: str, cause: str | None
) -> None:
    with pytest.raises(VideoError, match=reason) as caught:
        await read(some_file, reader=f"fake_readers:{reader}")
    if cause is not None:
        assert isinstance(caught.value.__cause__, RemoteTraceback)
        assert cause in str(caught.value.__cause__)


async def test_output_of_a_reader_does_no_harm(read: Read, some_file: Path) -> None:
    assert len((await read(some_file, reader="fake_readers:Printing")).frames) == 8


async def test_unknown_times_are_said_to_be_unknown(read: Read, some_file: Path) -> None:
    video = await read(some_file, reader="fake_readers:Timeless", num_frames=4)
    assert (video.timestamps_s, video.source_fps) == ((), None)
    with pytest.raises(VideoError, match="times of its frames are unknown"):
        await read(some_file, reader="fake_readers:Timeless", fps=1)


async def test_memory_is_limited_with_numbers(read: Read, some_file: Path) -> None:
    with pytest.raises(OptionError, match=r"10 frames of 1000x1000 need 0.0 GiB.*ask for at most 3 frames"):
        await read(some_file, reader="fake_readers:Wide", num_frames=10, lease=Room(10_000_000).lease())


async def test_a_decoder_that_asks_for_too_much_memory(read: Read, some_file: Path) -> None:
    with pytest.raises(VideoError, match="decoding ran out of memory"):
        await read(some_file, reader="fake_readers:Hungry", num_frames=3)


async def test_more_or_larger_frames_in_a_file_than_there_may_be(read: Read, some_file: Path) -> None:
    with pytest.raises(OptionError, match="20000 frames would be taken, more than the limit of 16384"):
        await read(some_file, reader="fake_readers:Long", fps=100.0)
    with pytest.raises(VideoError, match="its frames are 20000x2, beyond the limit of 16384 pixels a side"):
        await read(some_file, reader="fake_readers:Broad")


async def test_nothing_shadows_our_imports(
    read: Read, videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "numpy.py").write_text("raise SystemExit(9)")
    monkeypatch.chdir(tmp_path)
    assert len((await read(videos / "plain.mp4")).frames) == 8


def test_a_decoder_dies_with_its_parent(some_file: Path) -> None:
    code = (
        "import anyio, sys; from pvlm.video import read_video; from pvlm_protocols.backend import FrameDefaults;"
        "anyio.run(lambda: read_video(sys.argv[1], num_frames=1, fps=None, start=None, end=None,"
        " defaults=FrameDefaults(), reader='fake_readers:Sleeping'))"
    )
    places = os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)])
    parent = subprocess.Popen([sys.executable, "-c", code, str(some_file)], env={**os.environ, "PYTHONPATH": places})
    try:
        pid = _started(some_file)
    finally:
        parent.send_signal(signal.SIGKILL)
        parent.wait()
    deadline = time.monotonic() + 10
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.05)
