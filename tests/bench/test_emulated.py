"""The bench over emulated pairs: its predictions, its rows, and its command. Speed is not tested here."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest

from pvlm import OptionError
from pvlm.bench.emulated import EmulatedRow, measure_emulated
from pvlm.bench.pairs import PAIRS
from pvlm.cli import main
from pvlm.cli.bench.emulated import conclusions
from pvlm.speculation.theory import acceptance_from_length

METHODS = ["ar", "sd", "specvlm", "parallel", "outcomes"]


def test_predictions_for_the_paper_s_pairs() -> None:
    """Theorem 4 at window 5, theorem 7 at its best, and the better of 7 and 8, at prune ratio 0.9; the third is of a
    pair with fitted times.
    """
    found = {name: [trial.predicted for trial in pair.trials()] for name, pair in PAIRS.items()}
    assert found["ov-7b-72b"] == pytest.approx([1, 2.26, 2.46, 3.63, 4.56], abs=0.005)
    assert found["qwen-7b-32b"] == pytest.approx([1, 1.47, 1.90, 2.40, 2.96], abs=0.005)
    assert found["ov-0.5b-7b"] == pytest.approx([1, 1.31, 1.48, 2.28, 2.435], abs=0.005)
    assert found["ov-7b-7b"][3] == pytest.approx(1.56, abs=0.005)
    assert found["qwen-7b-7b"][3] == pytest.approx(1.49, abs=0.005)
    assert acceptance_from_length(PAIRS["ov-7b-72b"].accepted_length) == pytest.approx(0.8718, abs=0.0001)


def test_what_is_fitted_is_named() -> None:
    fitted = {name: [trial.fitted for trial in pair.trials()[1:]] for name, pair in PAIRS.items()}
    assert fitted == {
        "ov-7b-72b": [()] * 4,
        "qwen-7b-32b": [()] * 4,
        "ov-0.5b-7b": [("T_p", "T_q")] * 4,
        "ov-7b-7b": [("M",)] * 4,
        "qwen-7b-7b": [("M",)] * 4,
    }


@pytest.mark.anyio
async def test_a_tiny_run_has_a_row_for_each_method() -> None:
    seen: list[EmulatedRow] = []
    rows = await measure_emulated(
        [PAIRS["ov-7b-72b"]], tokens=24, time_scale=0.01, transport="inproc", on_row=seen.append
    )
    assert seen == rows
    assert [row.method for row in rows] == METHODS
    assert [row.prune_ratio for row in rows] == [0.0, 0.0, 0.9, 0.9, 0.9]
    assert [row.paper for row in rows] == [None, None, 2.74, 3.36, 3.36]
    assert [row.given_accepted_length for row in rows] == [6.8, 6.8, 4.4, 6.8, 6.8]
    for row in rows:
        assert row.same_tokens
        assert row.tokens == 24
        assert row.speedup > 0
        assert row.target_pass_ms is not None
        assert row.target_pass_ms >= 4.2
    assert rows[0].speedup == 1
    assert [row.first_speedup is not None for row in rows] == [False] * 3 + [True] * 2
    assert [row.window for row in rows[:3]] == [None, 5, 5]
    assert all(row.coordination_ms_p50 is not None for row in rows)


@pytest.mark.anyio
@pytest.mark.parametrize("wrong", [{"tokens": 1}, {"time_scale": 0.0}])
async def test_an_invalid_run(wrong: dict[str, float]) -> None:
    with pytest.raises(OptionError, match=next(iter(wrong))):
        await measure_emulated([PAIRS["ov-7b-72b"]], **wrong)  # type: ignore[arg-type]


def test_the_command_writes_the_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "rows.json"
    arguments = ["--pairs", "ov-0.5b-7b", "--tokens", "12", "--time-scale", "0.01", "--transport", "inproc"]
    assert main(["bench", "emulated", *arguments, "--json", str(path)]) == 0
    shown = capsys.readouterr().out
    assert all(method in shown for method in METHODS)
    assert "parallel >= 0.97 of theorem 7: " in shown
    rows = json.loads(path.read_text())
    assert [row["method"] for row in rows] == METHODS
    keys = {"pair", "method", "speedup", "predicted", "paper", "fitted", "mean_accepted_length", "window", "tokens"}
    assert keys | {"coordination_ms_p50", "coordination_ms_p99", "same_tokens"} <= set(rows[0])
    assert rows[3]["fitted"] == ["T_p", "T_q"]


def row_of(pair: str, speedup: float) -> EmulatedRow:
    trial = PAIRS[pair].trials()[3]
    given = {
        **dict.fromkeys(EmulatedRow.__struct_fields__),
        "pair": pair,
        "method": "parallel",
        "speedup": speedup,
        "predicted": trial.predicted,
        "paper": trial.paper,
        "fitted": trial.fitted,
    }
    return EmulatedRow(**given)  # type: ignore[arg-type]


def test_the_conclusions_count_only_what_can_be_compared() -> None:
    """Of these, one reaches both, one theory but has a paper's figure beyond theory, one neither but is fitted."""
    rows = [row_of("ov-7b-72b", 3.6), row_of("qwen-7b-32b", 2.4), row_of("ov-0.5b-7b", 1.0)]
    lines = conclusions(rows)
    assert lines[0] == "parallel >= 0.97 of theorem 7: 2 of 3 (not: ov-0.5b-7b)"
    assert lines[1] == "parallel >= the paper's figure, where theorem 7 reaches it: 1 of 1"
    assert lines[2].endswith("not compared: qwen-7b-32b")
    assert lines[3].endswith("not compared: ov-0.5b-7b: T_p, T_q")
    slow = [msgspec.structs.replace(rows[0], speedup=3.0)]
    assert conclusions(slow)[1].endswith("0 of 1 (not: ov-7b-72b)")


def test_another_token_is_an_exit_status(monkeypatch: pytest.MonkeyPatch) -> None:
    async def measured(*_: object, **__: object) -> list[EmulatedRow]:
        return [msgspec.structs.replace(row_of("ov-7b-72b", 3.6), same_tokens=False, tokens=1, time_scale=1.0)]

    monkeypatch.setattr("pvlm.bench.emulated.measure_emulated", measured)
    assert main(["bench", "emulated"]) == 1
