"""``pvlm bench passes``: what it measures, shows and writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from safetensors import safe_open

from pvlm.cli import main
from tests.support.pair import FLAGS, SMALL


def measured(tmp_path: Path, arguments: str) -> dict[str, Any]:
    file = tmp_path / "passes.json"
    threads = torch.get_num_threads()
    assert main(["bench", "passes", "--frames", "4", "--rounds", "2", *arguments.split(), "--json", str(file)]) == 0
    assert torch.get_num_threads() == threads
    written: dict[str, Any] = msgspec.json.decode(file.read_bytes())
    return written


def decoder_weights(role: str) -> int:
    """Numbers in the matrices that every pass reads: those of the layers, and the embedding as the head."""
    with safe_open(str(SMALL / role / "model.safetensors"), framework="pt") as file:
        shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118 (not a dict)
    matrices = [shape for name, shape in shapes.items() if "language_model" in name and len(shape) == 2]
    return sum(shape[0] * shape[1] for shape in matrices)


def test_the_small_pair(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written = measured(tmp_path, f"--tokens 1 3 {' '.join(FLAGS)}")
    assert [(row["role"], row["layers"], row["tokens"]) for row in written["passes"]] == [
        ("target", 6, 1),
        ("target", 6, 3),
        ("draft", 2, 1),
        ("draft", 2, 3),
    ]
    for row in written["passes"]:
        # Two to four bytes a weight, and the cache: keys and values of as many heads in float32.
        weights, (kv_heads, heads) = decoder_weights(row["role"]), {"target": (2, 4), "draft": (1, 2)}[row["role"]]
        cached = row["layers"] * 2 * kv_heads * 64 * row["rows"] * 4
        assert 2 * weights <= row["read_mb"] * 1e6 - cached <= 4 * weights + 1
        attention = 4 * row["layers"] * heads * 64 * row["rows"]
        assert row["gflop"] * 1e9 == pytest.approx(row["tokens"] * (2 * weights + attention))
        expected = max(row["read_mb"] / row["bandwidth_gb_s"], row["gflop"] / written["gflop_s"] * 1e3)
        assert row["limit_ms"] == pytest.approx(expected)
        assert row["of_limit"] == pytest.approx(row["limit_ms"] / row["ms"])
    target, draft = written["passes"][0]["rows"], written["passes"][2]["rows"]
    assert draft < target  # half of the video tokens are pruned
    shown = capsys.readouterr().out
    assert "of the limit" in shown
    assert "threads: 1" in shown


def test_a_backend_that_does_not_report_its_cost(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written = measured(tmp_path, f"--target {SMALL / 'draft'} --draft none --backend hf --tokens 1")
    (row,) = written["passes"]
    assert row["ms"] > 0
    assert row["limit_ms"] is None
    assert "–" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--tokens 0", "0 tokens: at least 1 is needed"),
        ("--rounds 0", "0 rounds: at least 1 is needed"),
        ("--frames 0", "0 frames: at least 1 is needed"),
        ("--target nowhere", "nowhere"),
    ],
)
def test_bad_input_is_one_clear_line(arguments: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "passes", *arguments.split()]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
