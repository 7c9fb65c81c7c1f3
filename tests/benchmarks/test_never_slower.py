"""The comparison of parallel decoding with plain decoding and taking turns. Speed is not tested here."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.__main__ import main
from benchmarks.never_slower import METHODS, drawn_clips
from tests.support.pair import PAIR


def test_clips_are_drawn_alike_each_time() -> None:
    first, again = drawn_clips(3), drawn_clips(3)
    assert all(np.array_equal(one, other) for one, other in zip(first, again, strict=True))
    assert len({len(clip) for clip in first}) > 1


def test_a_tiny_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The draft as its own target: each method gives the same tokens, and the rows compare each with each."""
    rows = tmp_path / "rows.json"
    pair = ["--target", PAIR["draft"], "--draft", PAIR["draft"], "--prune", "none"]
    command = ["never-slower", *pair, "--clips", "2", "--rounds", "1", "--max-tokens", "6", "--json", str(rows)]
    assert main(command) == 0
    written = json.loads(rows.read_text())
    assert [(row["method"], row["against"]) for row in written] == [
        ("parallel", "ar"),
        ("parallel", "no outcomes"),
        ("parallel", "sd"),
        ("sd", "ar"),
    ]
    assert {row["method"] for row in written} < set(METHODS)
    assert all(row["ratio"] > 0 and row["same_tokens"] and row["clips"] == 2 for row in written)
    assert "parallel over ar: " in capsys.readouterr().out
