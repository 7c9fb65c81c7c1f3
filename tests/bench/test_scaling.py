"""Scaling with the number of frames. Speed is not tested here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from pvlm import EngineConfig, OptionError
from pvlm.bench.scaling import measure_scaling
from pvlm.cli import main
from tests.bench.conftest import CLIPS, Script
from tests.support.pair import FLAGS, PAIR


@pytest.mark.anyio
async def test_scaling_slows_short_videos_down_and_compares_tokens(script: Script) -> None:
    script.decode_s["parallel"] = 0.5
    rows = await measure_scaling(EngineConfig(**PAIR), CLIPS / "one-scene.mp4", "?", frames=[16, 4], rounds=2)
    assert [row.frames for row in rows] == [4, 16]  # of the clip's six
    assert [row.same_tokens for row in rows] == [True, True]
    assert [(row.speedup_vs_ar, row.end_to_end_vs_ar, row.c) for row in rows] == [(2.0, pytest.approx(4 / 3), 8.0)] * 2
    script.tokens["parallel"] = (9,)
    rows = await measure_scaling(EngineConfig(**PAIR), CLIPS / "one-scene.mp4", "?", frames=[4], rounds=1)
    assert [row.same_tokens for row in rows] == [False]
    with pytest.raises(OptionError, match="0 frames"):
        await measure_scaling(EngineConfig(**PAIR), CLIPS / "one-scene.mp4", "?", frames=[0])


def test_a_tiny_scaling_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows_file, picture = tmp_path / "rows.json", tmp_path / "scaling.png"
    command = ["bench", "scaling", "--frames", "2", "8", "--rounds", "1", "--max-tokens", "24", *FLAGS]
    assert main([*command, "--json", str(rows_file), "--plot", str(picture)]) == 0
    rows = json.loads(rows_file.read_text())
    assert [(row["frames"], row["video_tokens"], row["same_tokens"]) for row in rows] == [(2, 32, True), (8, 128, True)]
    assert "frames" in capsys.readouterr().out
    with Image.open(picture) as image:
        assert min(image.size) > 300
