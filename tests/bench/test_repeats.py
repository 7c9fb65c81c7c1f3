"""The bench of further questions on one video: its rows and its command. Speed is not tested here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pvlm import OptionError
from pvlm.bench.repeats import NAMES, measure_repeats
from pvlm.cli import main


@pytest.mark.anyio
@pytest.mark.parametrize("wrong", [{"tokens": 0}, {"rounds": 0}, {"frames": [64, 0]}])
async def test_an_invalid_run(wrong: dict[str, int]) -> None:
    with pytest.raises(OptionError, match=next(iter(wrong))):
        await measure_repeats(["ov-7b-72b"], **wrong)  # type: ignore[arg-type]


def test_the_command_writes_a_row_for_each_pair(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "rows.json"
    arguments = ["--tokens", "8", "--time-scale", "0.001", "--rounds", "2", "--transport", "inproc"]
    assert main(["bench", "repeats", "--pairs", "ov-7b-72b", *arguments, "--json", str(path)]) == 0
    (row,) = json.loads(path.read_text())
    assert (row["pair"], row["frames"], row["same_tokens"]) == ("ov-7b-72b", None, True)
    assert 0 < row["prompt_tokens"] - row["cached_tokens"] < 10
    assert len(row["ratios"]) == 2
    assert row["first_s"] > 40  # the paper's prefill, whatever the scale
    assert "ov-7b-72b" in capsys.readouterr().out
    assert NAMES == ("ov-7b-72b", "bundled")
