"""Damaged mp4 files give a clear error or plausible frames: no crash of this process, no hang, nothing left behind."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.video.damaged import make_sources, read_damaged

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("nothing_left")]


async def test_damaged_files_give_an_error_or_frames(tmp_path: Path) -> None:
    """`make chaos` reads the other seeds up to 200."""
    outcomes = await read_damaged(make_sources(tmp_path), range(27))
    assert not outcomes.wrong
    assert outcomes.counts["error"] > 13
    assert sum(outcomes.counts.values()) == 27
