"""``pvlm plan``: what it predicts, shows and writes, and what it says about bad figures."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
from PIL import Image

from pvlm.bench.planning import PairFigures, plan
from pvlm.cli import main
from pvlm.speculation.theory import MeasuredCurve, best_vanilla_window, best_window, parallel_speedup
from tests.support.pair import FLAGS

# LLaVA-OneVision 7B & 72B in the paper: T_p, T_q at prune ratios 0, 0.5 and 0.9, M.
PAPER = "--target-ms 420 --draft-ms 0=78.3 0.5=57.5 0.9=46.6 --accepted-length 6.8"


def run(arguments: str) -> int:
    return main(["plan", *arguments.split()])


def planned(tmp_path: Path, arguments: str) -> dict[str, Any]:
    """What ``pvlm plan`` writes as JSON."""
    file = tmp_path / "plan.json"
    assert run(f"{arguments} --json {file}") == 0
    written: dict[str, Any] = msgspec.json.decode(file.read_bytes())
    return written


def test_the_pair_of_the_paper(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written = planned(tmp_path, PAPER)
    shown = capsys.readouterr().out
    assert [(row["ratio"], row["gamma"], row["k"]) for row in written["ratios"]] == [
        (0, 5, 2),
        (0.5, 7, 3),
        (0.9, 9, 3),
    ]
    most_pruned = written["ratios"][2]
    assert most_pruned["speedup"] == pytest.approx(3.63, abs=0.005)
    assert most_pruned["c"] == pytest.approx(9.01, abs=0.005)
    assert most_pruned["acceptance"] == pytest.approx(6.8 / 7.8)
    assert written["source"] == "given"
    (marked,) = [line.split() for line in shown.splitlines() if "←" in line and line.startswith(" 9")]
    assert marked == ["9", "2.91×", "3.63×", "3", "3.63×", "4.02×", "←", "γ*"]
    assert "γ* = 9, k = 3: 3.63×; vanilla at its best, γ = 8: 2.93×" in shown
    assert "one given acceptance rate" in shown


def test_predictions_are_those_of_the_theory() -> None:
    points = {1: 10.0, 4: 12.0, 9: 17.0}
    curve = MeasuredCurve(points)
    (result,) = plan(PairFigures(target_ms=points, draft_ms={0.0: 2.0}, acceptance={0.0: 0.8}), gamma_max=10)
    assert [window.gamma for window in result.windows] == list(range(1, 11))
    assert (result.gamma, result.k, result.speedup) == best_window(0.8, curve, 2.0, 10, whole_windows=True)
    assert max(window.parallel for window in result.windows) == pytest.approx(result.speedup)
    assert result.windows[result.gamma - 1].k == result.k
    vanilla = best_vanilla_window(0.8, curve, 2.0, 10)
    assert result.vanilla_gamma == vanilla.gamma
    assert result.windows[vanilla.gamma - 1].vanilla == pytest.approx(vanilla.speedup)
    assert max(window.vanilla for window in result.windows) == pytest.approx(result.vanilla_speedup)
    for window in result.windows:
        assert window.theorem_8 <= result.prepared.speedup == max(planned.theorem_8 for planned in result.windows)
        assert window.theorem_7 == pytest.approx(parallel_speedup(window.gamma, window.k, 0.8, curve, 2.0))


def test_a_curve_and_an_acceptance_for_each_ratio(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    figures = "--target-ms 1=420 10=431 --draft-ms 78.3 0.9=46.6 --acceptance 0=0.9 0.9=0.87 --gamma-max 12"
    written = planned(tmp_path, figures)
    assert written["target_ms"] == {"1": 420.0, "10": 431.0}
    assert [(row["ratio"], row["acceptance"]) for row in written["ratios"]] == [(0, 0.9), (0.9, 0.87)]
    assert [len(row["windows"]) for row in written["ratios"]] == [12, 12]
    assert "one given acceptance rate" not in capsys.readouterr().out


def test_it_says_where_no_window_pays_and_where_more_might(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--target-ms 1=10 2=20 --draft-ms 20 --acceptance 0.3") == 0
    assert "No window pays here" in capsys.readouterr().out
    assert run(f"{PAPER} --gamma-max 4") == 0
    assert "larger --gamma-max" in capsys.readouterr().out


@pytest.mark.parametrize("draft", ["50", "0=78.3 0.3=70 0.5=57.5 0.9=46.6"])
def test_a_picture(draft: str, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    file = tmp_path / "plan.png"
    assert run(f"--target-ms 420 --draft-ms {draft} --acceptance 0.87 --plot {file}") == 0
    with Image.open(file) as image:
        assert image.format == "PNG"
        colors = image.convert("RGB").getcolors(1 << 20)
    assert colors is not None
    assert len(colors) > 10


def test_the_picture_says_what_its_symbols_mean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    captions: list[str] = []
    monkeypatch.setattr("pvlm.cli.plan.save_plot", lambda _, figure: captions.append(figure.get_supxlabel()))
    assert run(f"{PAPER} --plot {tmp_path / 'plan.png'}") == 0
    for words in ("window γ (tokens)", "c = T_p / T_q", "β: accepted", "k: drafted tokens", "Times by hand."):
        assert words in captions[0].replace("\n", " ")


def test_without_matplotlib_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert run(f"{PAPER} --plot {tmp_path / 'plan.png'}") == 1
    assert capsys.readouterr().err == "pvlm: error: --plot needs matplotlib: pip install 'pvlm[plot]'\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--draft-ms 1 --acceptance 0.8", "--target-ms is missing"),
        ("--target-ms 9 --acceptance 0.8", "--draft-ms is missing"),
        ("--target-ms 9 --draft-ms 1", "give one of --acceptance and --accepted-length"),
        ("--target-ms 9 --draft-ms 1 --acceptance 0.8 --accepted-length 4", "give one of"),
        ("--target-ms 9 --draft-ms 1 --acceptance 1.2", "acceptance rate is 1.2"),
        ("--target-ms 9 --draft-ms 1 --acceptance -0.1", "acceptance rate is -0.1"),
        ("--target-ms 9 --draft-ms 1 --accepted-length -2", "accepted length is -2"),
        ("--target-ms 0 --draft-ms 1 --acceptance 0.8", "time of the target is 0 ms"),
        ("--target-ms 9 --draft-ms 0.9=-1 --acceptance 0.8", "time of the draft is -1 ms"),
        ("--target-ms inf --draft-ms 1 --acceptance 0.8", "not finite"),
        ("--target-ms 9 --draft-ms 1ms --acceptance 0.8", "'1ms' is not a number"),
        ("--target-ms 2=9 --draft-ms 1 --acceptance 0.8", "over one token (T_p) is missing"),
        ("--target-ms 1=9 1.5=9 --draft-ms 1 --acceptance 0.8", "over 1.5 tokens"),
        ("--target-ms 0=9 1=9 --draft-ms 1 --acceptance 0.8", "over 0 tokens"),
        ("--target-ms 9 --draft-ms 1 0=2 --acceptance 0.8", "--draft-ms has two values for 0"),
        ("--target-ms 9 --draft-ms 1=1 --acceptance 0.8", "prune ratio is 1"),
        ("--target-ms 9 --draft-ms 1 --acceptance 0=0.8 0.7=0.9", "prune ratio 0.7, but no time of the draft"),
        ("--target-ms 9 --draft-ms 0=1 0.5=1 --acceptance 0=0.8", "acceptance rate at prune ratio 0.5 is missing"),
        ("--target-ms 9 --draft-ms 1 --acceptance 0.8 --gamma-max 0", "largest window is 0"),
        ("--target-ms 9 --draft-ms 1 --acceptance 0.8 --plot plan.svg", "must end in .png"),
        ("--target-ms 9 --draft-ms 1 --acceptance 0.8 --json /nowhere/plan.json", "cannot write '/nowhere/plan.json'"),
        ("--measure --target-ms 9", "--measure and --target-ms exclude each other"),
        ("--measure a.mp4 what happens", "quote a question"),
        ("--measure --rounds 0", "0 rounds"),
        ("--measure --draft none", "needs a draft"),
    ],
)
def test_bad_figures_are_reported_in_one_line(arguments: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(arguments) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("pvlm: error: ")
    assert error.count("\n") == 1


def test_measured_on_the_small_pair(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    here = "--transport inproc --threads 1 --draft-threads 1 --frames 4 --max-tokens 12 --ratios 0 0.9"
    written = planned(tmp_path, f"--measure {here} {' '.join(FLAGS)}")
    assert written["source"] == "measured"
    assert list(written["target_ms"]) == ["1", "2", "3", "5", "8", "12"]
    assert [row["ratio"] for row in written["ratios"]] == [0, 0.9]
    for row in written["ratios"]:
        assert row["draft_ms"] > 0
        assert 0 <= row["acceptance"] <= 1
    assert "A pass of the target (measured)" in capsys.readouterr().out
