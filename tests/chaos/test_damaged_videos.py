"""All 200 damaged mp4 files; `make test` reads the first 40 of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.storm import Figures, write
from tests.video.damaged import make_sources, read_damaged

pytestmark = [pytest.mark.anyio, pytest.mark.chaos, pytest.mark.timeout(600)]


async def test_200_damaged_files_give_an_error_or_frames(tmp_path: Path) -> None:
    outcomes = await read_damaged(make_sources(tmp_path), range(200))
    figures = Figures(name="damaged videos", answers=200, wrong=outcomes.wrong)
    for outcome, times in outcomes.counts.items():
        figures.count("outcomes", outcome, times)
    for kind, counts in outcomes.kinds.items():
        figures.count("faults", kind.replace("_", " "), counts.total())
    write(figures)
    assert outcomes.wrong == []
    assert sum(outcomes.counts.values()) == 200
