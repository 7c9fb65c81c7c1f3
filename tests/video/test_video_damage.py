from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import anyio
import pytest
from conftest import Read
from video_files import box, indices_of, make_video

from pvlm.errors import VideoError
from pvlm.video import Video
from pvlm.video.auto_reader import AutoReader
from pvlm.video.containers import recognize

pytestmark = pytest.mark.anyio


async def read_all(sources: list[bytes], read: Read, check: Callable[[Video], None]) -> list[str]:
    """Read each, two at a time; the reasons of those that cannot be read."""
    reasons: list[str] = []
    limit = anyio.CapacityLimiter(2)

    async def one(source: bytes) -> None:
        async with limit:
            try:
                video = await read(source, num_frames=7, timeout_s=20)
            except VideoError as error:
                reasons.append(error.reason)
            else:
                check(video)

    async with anyio.create_task_group() as group:
        for source in sources:
            group.start_soon(one, source)
    return reasons


_MANY = """
import os, signal, sys, traceback
import av
from video_files import indices_of
from pvlm.errors import VideoError
from pvlm.video.auto_reader import AutoReader
from pvlm.video.readers import FramesRecounted

def seven(reader):
    indices = sorted({round(k * (reader.num_frames - 1) / 6) for k in range(7)})
    frames = reader.read(indices)
    reader.finish()
    return indices, frames

def outcome(path):
    try:
        reader = AutoReader(path)
        try:
            indices, frames = seven(reader)
        except FramesRecounted:
            indices, frames = seven(reader)
        return "exact" if indices_of(frames) == indices else "other"
    except VideoError as error:
        return f"error {error.reason}"
    except BaseException:
        return "raised " + traceback.format_exc().replace(chr(10), "|")

for path in sys.argv[1:]:
    if os.fork() == 0:
        signal.alarm(10)
        print(outcome(path), flush=True)
        os._exit(0)
    _, status = os.wait()
    if status:
        print("ended with status", status, flush=True)
"""


def read_in_forks(variants: list[bytes], folder: Path) -> list[str]:
    """Read many files, each in a fork of one process that has everything imported; a line for each."""
    paths = []
    for number, variant in enumerate(variants):
        paths.append(folder / f"variant{number}")
        paths[-1].write_bytes(variant)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)])}
    command = [sys.executable, "-c", _MANY, *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    lines = done.stdout.splitlines()
    assert len(lines) == len(variants), done.stderr[-3000:]
    return lines


def exact(video: Video) -> None:
    assert tuple(indices_of(video.frames)) == video.indices


@pytest.mark.parametrize("name", ["plain.mp4", "faststart.mp4"])
async def test_a_truncated_mp4_is_never_read(videos: Path, tmp_path: Path, read: Read, name: str) -> None:
    data = (videos / name).read_bytes()
    path = anyio.Path(tmp_path / "cut.mp4")
    for end in [*range(1, 100), *range(100, len(data), len(data) // 150), len(data) - 1]:
        await path.write_bytes(data[:end])
        if end >= 8:
            with pytest.raises(VideoError, match="cut off"):
                recognize(str(path))
    reasons = await read_all([data[:end] for end in (1, 7, 40, len(data) // 2, len(data) - 1)], read, exact)
    assert len(reasons) == 5


@pytest.mark.parametrize("name", ["cut.mkv", "cut.avi", "fragments.mp4"])
def test_other_containers_truncated_give_an_error_or_right_frames(tmp_path: Path, name: str) -> None:
    """Without an index in front nobody can know how many frames there should be; those that come must be right."""
    fragments = {"movflags": "frag_keyframe+empty_moov"} if name.endswith("mp4") else None
    path = make_video(tmp_path / name, codec="mpeg4", container=fragments)
    data = path.read_bytes()
    variants = [data[: len(data) * part // 11] for part in range(1, 11)]
    outcomes = read_in_forks(variants, tmp_path)
    assert all(outcome.split()[0] in ("exact", "error") for outcome in outcomes), outcomes
    assert name == "fragments.mp4" or sum("cut off" in outcome for outcome in outcomes) >= 9


async def test_an_mdat_without_a_size_is_measured_by_the_index(videos: Path, read: Read) -> None:
    data = bytearray((videos / "faststart.mp4").read_bytes())
    at = data.index(b"mdat") - 4
    data[at : at + 4] = bytes(4)  # "up to the end of the file"
    exact(await read(bytes(data), num_frames=7))
    with pytest.raises(VideoError, match="cut off|is damaged"):
        await read(bytes(data[:-200]))


@pytest.mark.parametrize("rubbish", [bytes(100), b"\r\n", b"\xff" * 50, b"junk" * 20])
def test_rubbish_behind_the_end_is_not_a_truncated_video(videos: Path, tmp_path: Path, rubbish: bytes) -> None:
    path = tmp_path / "more.mp4"
    path.write_bytes((videos / "plain.mp4").read_bytes() + rubbish)
    assert indices_of(AutoReader(str(path)).read([0, 30, 59])) == [0, 30, 59]


def test_flipped_bytes_never_crash_or_hang(videos: Path, tmp_path: Path) -> None:
    data = (videos / "plain.mp4").read_bytes()
    start, end = box(data, b"mdat")
    choose = random.Random(5)
    variants = []
    for mutation in range(40):
        copy = bytearray(data)
        for _ in range(choose.choice([1, 3, 10])):
            low, high = (start, end) if mutation % 4 else (end, len(data))  # one in four: the index
            copy[choose.randrange(low, high)] ^= choose.randrange(1, 256)
        variants.append(bytes(copy))
    outcomes = read_in_forks(variants, tmp_path)
    assert all(outcome.split()[0] in ("exact", "other", "error") for outcome in outcomes), outcomes
    assert sum("it is damaged" in outcome for outcome in outcomes) >= 15


async def test_a_hole_in_the_middle_is_noticed(videos: Path, read: Read) -> None:
    data = bytearray((videos / "plain.mp4").read_bytes())
    start, end = box(bytes(data), b"mdat")
    middle = (start + end) // 2
    data[middle : middle + 3000] = bytes(3000)
    with pytest.raises(VideoError, match="it is damaged") as caught:
        await read(bytes(data), num_frames=20)
    assert caught.value.path == f"<{len(data)} bytes>"


@pytest.mark.parametrize("kind", [b"stts", b"stsz", b"stco", b"stsc", b"stsd", b"ctts", b"stss"])
def test_absurd_numbers_in_the_index(videos: Path, tmp_path: Path, kind: bytes) -> None:
    data = bytearray((videos / "plain.mp4").read_bytes())
    start, _ = box(bytes(data), kind)
    data[start + 4 : start + 12] = b"\xff" * 8
    path = tmp_path / "absurd.mp4"
    path.write_bytes(data)
    with pytest.raises(VideoError):
        AutoReader(str(path))


_DROPPED = """
import faulthandler, gc, os, random, sys
import av
from pvlm.video.complaints import Messages
from pvlm.video.containers import recognize
from pvlm.video.packets import OpenVideo

faulthandler.dump_traceback_later(20, exit=True)
for seed in range(5):
    video = OpenVideo(sys.argv[1], recognize(sys.argv[1]))
    video.codec.thread_type, video.codec.thread_count = "AUTO", 4
    chance = random.Random(seed)
    with Messages() as messages:
        for packet in [packet for packet in video.packets() if packet.size][:6]:
            data = bytearray(bytes(packet))
            for _ in range(40):
                data[chance.randrange(8, len(data))] = chance.randrange(256)
            damaged = av.Packet(bytes(data))
            damaged.pts, damaged.dts, damaged.time_base = packet.pts, packet.dts, packet.time_base
            try:
                video.codec.decode(damaged)
            except av.FFmpegError:
                pass
        del video, packet
        gc.collect()
    print(len(messages.complaints()))
os._exit(0)
"""


def test_a_decoder_that_is_dropped_while_its_threads_complain(tmp_path: Path) -> None:
    """PyAV frees it with the GIL held, for which a thread with a message would wait: nothing would ever go on."""
    path = make_video(tmp_path / "damaged.mp4", codec="mpeg4", size=(720, 1280), frames=8)
    done = subprocess.run([sys.executable, "-c", _DROPPED, str(path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    counts = [int(line) for line in done.stdout.split()]
    assert len(counts) == 5
    assert min(counts) > 0
