from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Read
from PIL import Image

from pvlm.errors import OptionError, VideoError
from pvlm_protocols.backend import FrameDefaults

pytestmark = pytest.mark.anyio

ARRAY = np.arange(20, dtype=np.uint8).reshape(20, 1, 1, 1) * np.ones((1, 4, 6, 3), np.uint8)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"num_frames": 3, "fps": 1.0}, "num_frames=3 and fps=1.0 exclude each other"),
        ({"num_frames": 0}, "num_frames must be .*, not 0"),
        ({"num_frames": -2}, "not -2"),
        ({"num_frames": 16_385}, "num_frames must be a whole number from 1 to 16384, not 16385"),
        ({"num_frames": 2.5}, "whole number .* not 2.5"),
        ({"num_frames": True}, "not True"),
        ({"num_frames": "8"}, "not '8'"),
        ({"fps": 0}, "fps must be a positive number, not 0"),
        ({"fps": float("nan")}, "fps .* not nan"),
        ({"fps": float("inf")}, "fps .* not inf"),
        ({"start": -1.0}, "start must be a time in seconds, 0 or later, not -1.0"),
        ({"start": float("nan")}, "start .* not nan"),
        ({"start": "1"}, "start .* not '1'"),
        ({"start": 2.0, "end": 2.0}, "end=2.0 must be later than start=2.0"),
        ({"end": 0}, "end=0 must be later than start=0"),
        ({"timeout_s": 0}, "decode_timeout_s must be a positive number, not 0"),
    ],
)
async def test_options_that_cannot_be(read: Read, options: dict[str, Any], says: str) -> None:
    with pytest.raises(OptionError, match=says):
        await read("never-opened.mp4", **options)


@pytest.mark.parametrize("source", [None, 5, 3.0, {"frames": 1}])
async def test_sources_that_cannot_be(read: Read, source: object) -> None:
    with pytest.raises(OptionError, match=f"not a {type(source).__name__}"):
        await read(source)


async def test_more_frames_than_may_be_taken(read: Read) -> None:
    """Also where nobody has named their number, and of a file, whose frames are counted before they are decoded."""
    many = np.zeros((16_385, 1, 1, 3), np.uint8)
    everything = FrameDefaults(num_frames=2**40, consecutive=True)
    with pytest.raises(OptionError, match="16385 frames would be taken, more than the limit of 16384; ask for fewer"):
        await read(many, defaults=everything)
    assert len((await read(many, num_frames=16_384)).frames) == 16_384


async def test_larger_frames_than_any_model_looks_at(read: Read) -> None:
    with pytest.raises(VideoError, match="its frames are 16385x2, beyond the limit of 16384 pixels a side"):
        await read(np.zeros((1, 2, 16_385, 3), np.uint8))


async def test_array(read: Read) -> None:
    video = await read(ARRAY, num_frames=3)
    assert video.indices == (0, 10, 19)
    assert video.frames[:, 0, 0, 0].tolist() == [0, 10, 19]
    assert (video.timestamps_s, video.source_fps, video.source_frames) == ((), None, 20)
    assert (await read(ARRAY)).indices == (0, 3, 5, 8, 11, 14, 16, 19)
    whole = await read(ARRAY, defaults=FrameDefaults(num_frames=32, consecutive=True))
    assert whole.indices == tuple(range(20))


async def test_tensor(read: Read) -> None:
    torch = pytest.importorskip("torch")
    video = await read(torch.from_numpy(ARRAY), num_frames=2)
    assert video.frames[:, 0, 0, 0].tolist() == [0, 19]
    with pytest.raises(VideoError, match=r"uint8, not torch.float32; scale"):
        await read(torch.zeros(2, 4, 4, 3))


async def test_images(read: Read) -> None:
    images = [Image.new("L", (6, 4), color) for color in range(5)]
    video = await read(images, num_frames=5)
    assert video.frames.shape == (5, 4, 6, 3)
    assert video.frames[:, 0, 0, 1].tolist() == [0, 1, 2, 3, 4]


async def test_one_image_is_one_frame(read: Read) -> None:
    assert (await read(Image.new("RGB", (6, 4), "red"))).frames.shape == (1, 4, 6, 3)


async def test_images_are_turned_as_their_exif_data_say(read: Read, tmp_path: Path) -> None:
    image = Image.fromarray(np.arange(72, dtype=np.uint8).reshape(4, 6, 3))
    exif = image.getexif()
    for orientation, turned in (
        (1, lambda a: a),
        (2, np.fliplr),
        (3, lambda a: a[::-1, ::-1]),
        (6, lambda a: np.rot90(a, -1)),
    ):
        exif[0x0112] = orientation
        image.save(tmp_path / "image.png", exif=exif)
        with Image.open(tmp_path / "image.png") as stored:
            video = await read([stored])
        assert np.array_equal(video.frames[0], turned(np.asarray(image)))


@pytest.mark.parametrize("mode", ["I;16", "I", "F"])
async def test_images_of_unknown_range(read: Read, mode: str) -> None:
    with pytest.raises(VideoError, match=f"image 1 has the mode '{mode}', whose numbers have no known range; scale"):
        await read([Image.new("L", (6, 4)), Image.new(mode, (6, 4))])


@pytest.mark.parametrize(
    ("source", "says"),
    [
        (ARRAY.astype(np.float32), "must be uint8, not float32; scale"),
        (ARRAY[0], r"shape \(4, 6, 3\).*must have the shape \(T, H, W, 3\)"),
        (ARRAY.transpose(0, 3, 1, 2), "transpose it: the channels are last"),
        (ARRAY[..., :1], r"must have the shape \(T, H, W, 3\)"),
        (ARRAY[:0], "no frames"),
        (ARRAY[:, :0], "no pixels"),
        ([], "no frames"),
        ([Image.new("RGB", (6, 4)), Image.new("RGB", (4, 6))], "image 1 is 4x6 and image 0 is 6x4; resize"),
        ([Image.new("RGB", (6, 4)), ARRAY[0]], "item 1 is a ndarray"),
        (b"", "empty"),
        ("", "empty"),
        ("a\0b", "null"),
    ],
)
async def test_sources_with_the_wrong_content(read: Read, source: Any, says: str) -> None:
    with pytest.raises(VideoError, match=says):
        await read(source)


@pytest.mark.parametrize("options", [{"fps": 2}, {"start": 0.0}, {"end": 1.0}])
async def test_frames_in_memory_have_no_times(read: Read, options: dict[str, float]) -> None:
    with pytest.raises(OptionError, match="have no times; use num_frames"):
        await read(ARRAY, **options)


def test_importing_the_room_imports_no_decoder_and_no_torch() -> None:
    code = "import sys, pvlm.video; print([name for name in ('torch', 'decord', 'PIL', 'av') if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
