"""The bench of the pruners: its rows, where the kept tokens lie, and its command with its picture."""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib.resources import as_file, files
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from pvlm.bench.pruning import PARTS, PruningRow, by_part, measure_pruning
from pvlm.cli import main
from pvlm.cli.bench.pruning import draw
from pvlm.config import engine_config
from pvlm.errors import OptionError
from tests.support.plugin import DRAFT, TARGET, toy_plugin
from tests.support.toy import ToySession


@pytest.fixture(scope="module", autouse=True)
def _toys(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with toy_plugin(tmp_path_factory.mktemp("site")):
        yield


@pytest.fixture(scope="module")
def clip() -> Iterator[str]:
    with as_file(files("pvlm") / "bundled" / "clips" / "one-scene.mp4") as path:
        yield str(path)


# ---- where the kept tokens lie ------------------------------------------------------------------------------------


@given(kept=st.lists(st.integers(0, 16), min_size=1, max_size=99).filter(any))
def test_parts_share_what_is_kept(kept: list[int]) -> None:
    parts = by_part(np.array(kept))
    assert parts.shape == (PARTS,)
    assert parts.min() >= -1e-12
    assert parts.sum() == pytest.approx(1)
    centre = (np.arange(len(kept)) + 0.5) @ np.array(kept) / sum(kept) / len(kept)
    assert parts @ (np.arange(PARTS) + 0.5) / PARTS == pytest.approx(centre, abs=1 / PARTS)


def test_parts_of_clips_of_any_length() -> None:
    for frames in (PARTS, PARTS // 2, 3 * PARTS, 45):
        assert by_part(np.full(frames, 3)) == pytest.approx(np.full(PARTS, 1 / PARTS))
    assert by_part(np.eye(PARTS, dtype=np.int64)[5]).tolist() == np.eye(PARTS)[5].tolist()
    # The first of 16 frames is two parts; the second of 64 is the latter half of one.
    assert by_part(np.array([1] + [0] * 15))[:3] == pytest.approx([0.5, 0.5, 0])
    assert by_part(np.array([0, 1] + [0] * 62))[:2] == pytest.approx([1, 0])


# ---- rows ---------------------------------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_a_row_for_each_method_and_ratio() -> None:
    config = engine_config({"target": TARGET, "draft": DRAFT, "backend": "toy", "transport": "inproc"})
    videos = [np.zeros((frames, 8, 8, 3), np.uint8) for frames in (8, 4)]
    reported: list[PruningRow] = []
    rows = await measure_pruning(
        config, videos, "?", methods=["attention", "uniform"], ratios=[0.0, 0.5, 0.9], on_row=reported.append
    )
    assert rows == reported
    assert [(row.prune, row.ratio, row.positions) for row in rows] == [
        ("none", 0.0, "–"),
        ("attention", 0.5, "original"),
        ("uniform", 0.5, "original"),
        ("attention", 0.9, "original"),
        ("uniform", 0.9, "original"),
    ]
    assert all(row.same_tokens and row.clips == 2 for row in rows)
    assert [row.kept for row in rows] == pytest.approx([1.0, 0.5, 0.5, 0.109375, 0.109375])
    evenly = [1 / PARTS] * PARTS
    assert rows[0].kept_by_part == pytest.approx(evenly)
    assert rows[2].kept_by_part == pytest.approx(evenly)
    assert rows[3].kept_by_part == pytest.approx(
        np.mean([by_part(attended(4 * frames, kept)) for frames, kept in ((8, 3), (4, 2))], axis=0)
    )


@pytest.mark.anyio
async def test_a_model_whose_video_cannot_be_pruned_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ToySession, "video_tokens", property(lambda self: 0, lambda self, tokens: None), raising=False)
    config = engine_config({"target": TARGET, "draft": DRAFT, "backend": "toy", "transport": "inproc"})
    with pytest.raises(OptionError, match="no video token can be pruned with this model"):
        await measure_pruning(config, [np.zeros((4, 8, 8, 3), np.uint8)], "?")


def attended(m: int, kept: int) -> NDArray[np.int64]:
    """How many of its four tokens a frame of the toy keeps by attention."""
    first = torch.randn(m, 8, generator=torch.Generator().manual_seed(m))[:, 0]
    return np.bincount(first.topk(kept).indices.numpy() // 4, minlength=m // 4)


# ---- the command --------------------------------------------------------------------------------------------------


def test_the_command_writes_rows_and_a_picture(tmp_path: Path, clip: str, capsys: pytest.CaptureFixture[str]) -> None:
    rows, picture = tmp_path / "rows.json", tmp_path / "pruning.png"
    command = ["bench", "pruning", clip, "--methods", "uv", "novelty", "--ratios", "0.9", "--compact-positions"]
    command += ["--json", str(rows), "--plot", str(picture), "--transport", "inproc", "--threads", "1"]
    assert main(command) == 0
    uv, novelty = json.loads(rows.read_text())
    assert (uv["prune"], uv["positions"], novelty["prune"]) == ("uv", "compact", "novelty")
    assert novelty["kept_by_part"][0] == max(novelty["kept_by_part"])  # of the first frame everything is new
    assert novelty["kept_by_part"] != uv["kept_by_part"]
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "novelty" in capsys.readouterr().out


def test_the_picture_shows_what_was_measured() -> None:
    def row(prune: str, ratio: float, acceptance: float | None, first: float) -> PruningRow:
        parts = (first, *[(1 - first) / (PARTS - 1)] * (PARTS - 1))
        return PruningRow(
            prune=prune, ratio=ratio, positions="original", clips=1, tokens=9, acceptance_rate=acceptance,
            mean_accepted_length=None, kept=1 - ratio, kept_by_part=parts, same_tokens=True,
        )  # fmt: skip

    rows = [row("none", 0.0, 0.9, 1 / PARTS)]
    rows += [row("uv", ratio, 0.8 - ratio / 10, ratio / 10) for ratio in (0.5, 0.8, 0.95)]
    rows += [row("random", ratio, None, 0.5) for ratio in (0.5, 0.8, 0.95)]
    acceptance, places = draw(rows).axes
    lines = {line.get_label(): np.array(line.get_xydata()) for line in acceptance.get_lines()}
    assert lines["uv"] == pytest.approx(np.array([[0, 0.9], [0.5, 0.75], [0.8, 0.72], [0.95, 0.705]]))
    assert np.isnan(lines["random"][1:, 1]).all()
    (steps,) = places.patches
    assert steps.get_label() == "uv"
    assert steps.get_data().values[0] == pytest.approx(0.095)  # 0.95 is nearer to 0.9 than 0.8 is
    assert "0.95" in places.get_title(loc="left")


@pytest.mark.parametrize(
    ("videos", "options", "complaint"),
    [
        (["{clip}"], ["--methods", "uvv"], "there is no 'uvv': did you mean 'uv'?"),
        (["{clip}"], ["--ratios", "0.5", "1"], "prune_ratio is 1.0"),
        (["nothing.mp4", "{clip}"], ["--ratios", "0.5"], "cannot read video 'nothing.mp4'"),
    ],
)
def test_invalid_options_are_reported_in_one_line(
    clip: str, videos: list[str], options: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [video.format(clip=clip) for video in videos]
    assert main(["bench", "pruning", *paths, *options, "--transport", "inproc", "--threads", "1"]) != 0
    written = capsys.readouterr().err
    assert complaint in written
    assert "Traceback" not in written


def test_a_picture_is_a_png(clip: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "pruning", clip, "--plot", "pruning.jpg"]) != 0
    assert "must end in .png" in capsys.readouterr().err
