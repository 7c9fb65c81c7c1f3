"""The bench of the automatic window: its scenarios, its rows, and its command. Speed is not tested here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pvlm.bench.adaptive import SCENARIOS, Phase, Scenario, measure_adaptive
from pvlm.cli import main

SHORT = Scenario("short", {1: 2.0}, 0.5, (Phase(0.9, 20), Phase(0.5, 20)))
HOPELESS = Scenario("hopeless", {1: 1.0}, 2.0, (Phase(0.3, 40),), hopeless=True)


def test_the_best_window_differs_where_it_is_to_be_found() -> None:
    best = {name: [scenario.best_gamma(phase) for phase in scenario.phases] for name, scenario in SCENARIOS.items()}
    assert best["changing"] == [9, 5, 9]
    assert best["window-too-short"] == [12]
    assert best["window-too-long"] == [2]


@pytest.mark.anyio
async def test_a_row_for_each_scenario() -> None:
    rows = await measure_adaptive([SHORT, HOPELESS], rounds=2, transport="inproc")
    assert [(row.scenario, row.against, row.tokens, row.same_tokens) for row in rows] == [
        ("short", "fixed", 40, True),
        ("hopeless", "plain", 40, True),
    ]
    assert [len(row.windows) for row in rows] == [2, 0]
    assert all(row.ratio > 0 for row in rows)
    assert rows[1].rests >= 1


def test_the_command_writes_the_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "rows.json"
    command = [
        "bench",
        "adaptive",
        "--scenarios",
        "as-slow",
        "--time-scale",
        "0.02",
        "--rounds",
        "1",
        "--json",
        str(file),
    ]
    assert main([*command, "--transport", "inproc"]) == 0
    (row,) = json.loads(file.read_text())
    assert row["scenario"] == "as-slow"
    assert row["required"] == 0.98
    assert "plain decoding" in capsys.readouterr().out
