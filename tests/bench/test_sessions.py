"""The bench of several answers at once: its rows and its command. Speed is not tested here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pvlm import OptionError
from pvlm.bench.sessions import measure_sessions
from pvlm.cli import main


@pytest.mark.anyio
@pytest.mark.parametrize("wrong", [{"tokens": 1}, {"rounds": 0}, {"sessions": [2, 0]}, {"further_token": -1}])
async def test_an_invalid_run(wrong: dict[str, int]) -> None:
    with pytest.raises(OptionError, match=next(iter(wrong))):
        await measure_sessions(["ov-7b-72b"], **wrong)  # type: ignore[arg-type]


def test_the_command_writes_a_row_for_each_number(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, picture = tmp_path / "rows.json", tmp_path / "sessions.png"
    arguments = ["--sessions", "1", "3", "--tokens", "12", "--time-scale", "0.002", "--rounds", "2"]
    command = ["bench", "sessions", "--pairs", "ov-7b-72b", *arguments, "--transport", "inproc", "--plot", str(picture)]
    assert main([*command, "--json", str(path)]) == 0
    rows = json.loads(path.read_text())
    assert [(row["pair"], row["sessions"], row["tokens"]) for row in rows] == [
        ("ov-7b-72b", 1, 12),
        ("ov-7b-72b", 3, 36),
    ]
    for row in rows:
        assert row["same_tokens"]
        assert len(row["decoding_ratios"]) == 2
        assert min(row["decoding_ratio"], row["ratio"], row["tokens_per_second"]) > 0
        assert row["first_token_s_p99"] >= row["first_token_s_p50"] > 40  # the paper's prefill, whatever the scale
        assert row["between_tokens_ms_p99"] >= row["between_tokens_ms_p50"] >= 0
        assert row["prefill_gap_ms"] >= 0
        assert row["prefill_ms"] > 44_000
        assert 0 < row["busy"] <= 1
        assert row["of_limit"] is None
    printed = capsys.readouterr().out
    assert "ov-7b-72b" in printed
    assert "(1 + 0.02 (n - 1))" in printed
    assert picture.read_bytes()[1:4] == b"PNG"
