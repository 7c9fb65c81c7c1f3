"""The bench of several answers at once: its rows and its command. Speed is not tested here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pvlm import OptionError
from pvlm.bench.sessions import measure_sessions
from pvlm.cli import main


@pytest.mark.anyio
@pytest.mark.parametrize("wrong", [{"tokens": 1}, {"rounds": 0}, {"sessions": [2, 0]}])
async def test_an_invalid_run(wrong: dict[str, int]) -> None:
    with pytest.raises(OptionError, match=next(iter(wrong))):
        await measure_sessions(["ov-7b-72b"], **wrong)  # type: ignore[arg-type]


def test_the_command_writes_a_row_for_each_number(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "rows.json"
    arguments = ["--sessions", "1", "3", "--tokens", "12", "--time-scale", "0.01", "--rounds", "2"]
    command = ["bench", "sessions", "--pairs", "ov-7b-72b", *arguments, "--transport", "inproc"]
    assert main([*command, "--json", str(path)]) == 0
    rows = json.loads(path.read_text())
    assert [(row["pair"], row["sessions"], row["tokens"]) for row in rows] == [
        ("ov-7b-72b", 1, 12),
        ("ov-7b-72b", 3, 36),
    ]
    assert all(row["same_tokens"] and len(row["ratios"]) == 2 and row["ratio"] > 0 for row in rows)
    assert "ov-7b-72b" in capsys.readouterr().out
