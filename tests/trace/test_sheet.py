"""The sheet of frames shows which video tokens the draft has seen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pvlm import Engine
from pvlm.trace import Trace
from pvlm.trace.sheet import FRAME_WIDTH, GAP, HEADER, MARGIN
from tests.backends.families.qwen3_vl.checkpoint import qwen3_checkpoint
from tests.support.pair import PAIR
from tests.support.toy import ToyProcessor
from tests.trace.conftest import FRAMES, TOY, traced

pytestmark = pytest.mark.anyio

RED = tuple(FRAMES[0, 0, 0])
HEIGHT = FRAME_WIDTH * 40 // 60


async def sheet(folder: Path, **options: Any) -> np.ndarray:
    """The sheet of the toys' trace, uint8 ``(H, W, 3)``. Its frames stand in one row."""
    _, trace = await traced(**options)
    trace.write(folder)
    return np.asarray(Image.open(folder / "frames.png").convert("RGB"))


def kept(picture: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """Of each frame's cells, which show the video as it is: bool ``(4, h, w)``."""
    rows, columns = grid
    shown = np.empty((len(FRAMES), rows, columns), bool)
    for frame, row, column in np.ndindex(*shown.shape):
        x = MARGIN + frame * (FRAME_WIDTH + GAP) + int((column + 0.5) * FRAME_WIDTH / columns)
        y = HEADER + int((row + 0.5) * HEIGHT / rows)
        colour = picture[y, x]
        shown[frame, row, column] = tuple(colour) == RED
        assert shown[frame, row, column] or np.ptp(colour) == 0, "neither the video nor grey"
    return shown


async def test_kept_tokens_are_shown_and_dropped_ones_dimmed_in_the_processor_s_order(tmp_path: Path) -> None:
    found = kept(await sheet(tmp_path, prune="uniform", prune_ratio=0.75), (2, 2))
    # Of 16 tokens every fourth stays, beginning with the third.
    assert np.flatnonzero(found).tolist() == [2, 6, 10, 14]


async def test_several_videos_follow_one_another(tmp_path: Path) -> None:
    """The mask is of all of them."""
    trace = Trace()
    content = [{"type": "video", "video": FRAMES[:1]}, {"type": "text", "text": "or"}]
    content += [{"type": "video", "video": FRAMES[1:]}, {"type": "text", "text": "What?"}]
    async with Engine.create(**TOY) as engine:
        await engine.answer(
            messages=[{"role": "user", "content": content}], trace=trace, prune="uniform", prune_ratio=0.75
        )
    trace.write(tmp_path)
    picture = np.asarray(Image.open(tmp_path / "frames.png").convert("RGB"))
    assert np.flatnonzero(kept(picture, (2, 2))).tolist() == [2, 6, 10, 14]


async def test_frames_that_share_tokens_show_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ToyProcessor, "video_grid", lambda self, frames: (len(frames) // 2, 2, 4))
    found = kept(await sheet(tmp_path, prune="random", prune_ratio=0.5, seed=1), (2, 4))
    np.testing.assert_array_equal(found[[0, 2]], found[[1, 3]])
    assert found[[0, 2]].sum() == 8
    assert (found[0] != found[2]).any()


async def test_video_tokens_in_several_runs(tmp_path: Path) -> None:
    """Qwen3-VL's, with text before each pair of frames."""
    target = str(qwen3_checkpoint(tmp_path / "checkpoint"))
    trace, frames = Trace(), np.full((4, 64, 96, 3), RED, np.uint8)
    async with Engine.create(target=target, draft=target, transport="inproc", threads=1, draft_threads=1) as engine:
        answer = await engine.answer(frames, "What?", max_tokens=2, trace=trace, prune="random", prune_ratio=0.5)
    trace.write(tmp_path)
    picture = np.asarray(Image.open(tmp_path / "frames.png").convert("RGB"))
    found = kept(picture, (2, 3))
    np.testing.assert_array_equal(found[[0, 2]], found[[1, 3]])
    assert found[[0, 2]].sum() == answer.stats.kept_video_tokens == 6
    assert (found[0] != found[2]).any()


@pytest.mark.parametrize(
    ("grid", "options"),
    [((4, 3, 3), {"prune": "uniform"}), ((1, 1, 16), {"method": "ar"}), ((4, 2, 2), {"prune": "none"})],
)
async def test_without_pruning_or_a_grid_that_fits_the_frames_stay_as_they_are(
    grid: tuple[int, int, int], options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ToyProcessor, "video_grid", lambda self, frames: grid)
    assert kept(await sheet(tmp_path, **options), (8, 8)).all()


@pytest.mark.parametrize("count", [1, 2, 7, 33])
async def test_every_frame_has_its_place(count: int, tmp_path: Path) -> None:
    """Of the small pair, whose grid is that of a real model."""
    frames = np.random.default_rng(0).integers(0, 256, (count, 90, 160, 3), np.uint8)
    trace = Trace()
    async with Engine.create(target=PAIR["target"], draft=None, transport="inproc", threads=1) as engine:
        await engine.answer(frames, "What?", max_tokens=1, trace=trace)
    trace.write(tmp_path)
    picture = np.asarray(Image.open(tmp_path / "frames.png").convert("RGB")).astype(int)
    colourful = np.ptp(picture, axis=-1) > 8  # noise, on a sheet that is nearly grey
    assert colourful.sum() == pytest.approx(count * FRAME_WIDTH * (FRAME_WIDTH * 9 // 16), rel=0.1)
