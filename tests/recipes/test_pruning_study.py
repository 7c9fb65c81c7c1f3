"""The study of scores for video tokens, on one clip."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "recipes"))

from pvlm.speculation.masks import kept_count
from shapes.__main__ import main
from shapes.pruning import CHOICES, RATIOS, Seen, hits, load, prompts
from tests.support.pair import FLAGS, PAIR


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def seen() -> Seen:
    return next(prompts(load(PAIR["target"]), 1, 5000, "scene"))


@pytest.mark.parametrize("name", CHOICES)
def test_every_choice_keeps_what_it_is_told(seen: Seen, name: str) -> None:
    for ratio in RATIOS:
        keep = kept_count(seen.m, ratio)
        mask = CHOICES[name](seen, keep)
        assert mask.shape == (seen.m,)
        assert int(mask.sum()) == keep


def test_a_target_agrees_with_itself_where_it_sees_everything(seen: Seen) -> None:
    everything = torch.ones(seen.m, dtype=torch.bool)
    assert hits(load(PAIR["target"]), seen, everything).all()
    found = hits(load(PAIR["draft"]), seen, everything)
    assert found.shape == (len(seen.answer),)
    assert found.any()
    assert not hits(load(PAIR["draft"]), seen, ~everything).all()


def test_things_are_where_the_clip_draws_them(seen: Seen) -> None:
    """Most squares with a thing have pixels that are not the background's; of the others next to none: a corner."""
    assert seen.prompt.frames is not None
    frames = seen.prompt.frames.astype(int).reshape(len(seen.prompt.frames), 4, 28, 4, 28, 3)
    span = np.ptp(frames, axis=(2, 4)).max(axis=-1).flatten()
    things = seen.things.numpy()
    assert (span[~things] > 60).mean() < 0.05
    assert (span[things] > 60).mean() > 0.6


def test_the_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["shapes", "pruning", *FLAGS, "--clips", "1", "--choices", "uniform", "least gain"])
    main()
    table, _, alignments = capsys.readouterr().out.partition("\n\n")
    rows = table.splitlines()[2:]
    assert [row.split(" | ")[0] for row in rows] == ["| uniform", "| least gain"]
    assert all(0 < float(cell) < 1 for row in rows for cell in row.strip("| ").split(" | ")[1:])
    assert alignments.count("alignment of tokens") == 2
    monkeypatch.setattr("sys.argv", ["shapes", "pruning", "--choices", "most gain"])
    with pytest.raises(SystemExit, match="no choice 'most gain'"):
        main()
