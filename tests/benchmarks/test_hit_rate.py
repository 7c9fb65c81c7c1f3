"""Hit rates by rank and coupling."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.__main__ import main
from benchmarks.hit_rate import COUPLINGS, RANKS
from tests.support.pair import PAIR


def test_a_tiny_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = tmp_path / "rows.json"
    pair = ["--target", PAIR["target"], "--draft", PAIR["draft"], "--prune", "none"]
    command = ["hit-rate", *pair, "--clips", "2", "--max-tokens", "48", "--outcomes", "2", "--json", str(rows)]
    assert main(command) == 0
    written = json.loads(rows.read_text())
    assert [row["coupling"] for row in written] == list(COUPLINGS)
    for row in written:
        assert row["clips"] == 2
        assert 0 <= row["rejections"] <= row["positions"] <= 96
        assert len(row["by_rank"]) == RANKS
        assert (row["by_rank"] == [None] * RANKS) == (row["rejections"] == 0)
        assert 0 <= sum(share or 0 for share in row["by_rank"]) <= 1 + 1e-9
        counted = row["hits"] + row["late_hits"] + row["misses"]
        assert (row["hit_rate"] is None) == (counted == 0)
    assert sum(row["rejections"] for row in written) > 0
    assert "greedy: " in capsys.readouterr().out


def test_a_draft_that_is_its_own_target_is_rejected_nowhere(tmp_path: Path) -> None:
    """Whichever way both draw, as long as they share the noise."""
    rows = tmp_path / "rows.json"
    pair = ["--target", PAIR["draft"], "--draft", PAIR["draft"], "--prune", "none"]
    assert main(["hit-rate", *pair, "--clips", "1", "--max-tokens", "16", "--json", str(rows)]) == 0
    greedy, gumbel, _ = json.loads(rows.read_text())
    assert greedy["rejections"] == gumbel["rejections"] == 0
    assert greedy["by_rank"] == [None] * RANKS
