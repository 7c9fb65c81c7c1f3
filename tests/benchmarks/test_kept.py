"""Many questions on few videos. Memory is not tested here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.__main__ import main
from tests.support.pair import FLAGS


def test_a_short_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Room for two or three of the videos: some are evicted, and every answer is that of plain decoding."""
    path = tmp_path / "kept.json"
    command = ["kept", *FLAGS, "--questions", "20", "--prefix-cache-bytes", "4000000", "--json", str(path)]
    assert main(command) == 0
    written = json.loads(path.read_text())
    assert written["different"] == 0
    assert written["evictions"] > 0
    assert written["cached_tokens"][0] == written["cached_tokens"][1] > 0
    assert 0 < written["most_bytes"]["target"] <= 4_000_000
    assert set(written["memory_mb"]) == {"engine", "target", "draft"}
    assert len(written["memory_mb"]["engine"]) == 10
    assert "evictions: " in capsys.readouterr().out
