"""The command ``pvlm bench``: tables, rows, pictures, exit status and errors."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
from matplotlib.figure import Figure
from PIL import Image

from pvlm.bench.comparison import MethodRow
from pvlm.cli import main
from pvlm.cli.bench.methods import conclusions
from tests.bench.conftest import CLIPS
from tests.bench.test_comparison import FIGURES
from tests.support.pair import FLAGS


def test_a_tiny_run_end_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Real models in worker processes, with a peer; the command gives a table, rows and a picture."""
    rows_file, picture = tmp_path / "rows.json", tmp_path / "speed.png"
    command = ["bench", "--videos", str(CLIPS / "one-scene.mp4"), "--rounds", "1", "--max-tokens", "12"]
    command += [
        "--methods",
        "ar-all-cores",
        "specvlm",
        "parallel-no-pp",
        "parallel-no-pd",
        "assisted",
        "pruned-uv",
        "--note",
        "on two cores",
    ]
    assert main([*command, *FLAGS, "--json", str(rows_file), "--plot", str(picture)]) == 0
    rows = json.loads(rows_file.read_text())
    names = ["ar", "ar-all-cores", "specvlm", "parallel-no-pp", "parallel-no-pd", "assisted"]
    names += ["pruned-none", "pruned-uv-10", "pruned-uv-50"]
    assert [row["method"] for row in rows] == names
    assert all(set(FIGURES) <= set(row) for row in rows)
    assert all(row["same_tokens"] and (row["tokens"] == 12 or row["lossy"]) for row in rows)
    assert [row["method"] for row in rows if row["lossy"]] == names[-2:]
    assert {(row["target_layers"], row["note"]) for row in rows} == {(6, "on two cores")}
    assert all(row["peak_rss_mb"] > 100 for row in rows)
    assert rows[2]["peak_rss_mb"] > rows[0]["peak_rss_mb"] + 100  # the draft's process
    shown = capsys.readouterr().out
    assert all(name in shown for name in [*names, "same tokens", "equal tokens", "on two cores"])
    with Image.open(picture) as image:
        assert min(image.size) > 300


@pytest.fixture
def rows() -> list[MethodRow]:
    given: dict[str, Any] = {
        **dict.fromkeys(MethodRow.__struct_fields__),
        **dict.fromkeys(["tokens_per_second", "time_to_first_token_s", "prefill_s", "decode_s", "peak_rss_mb"], 1.0),
        **dict.fromkeys(["tokens", "clips", "rounds"], 1),
        "note": "on two cores",
        "speedup_vs_ar_quartiles": (1.0, 1.0),
        "end_to_end_vs_ar": 1.0,
        "same_tokens": True,
    }
    speeds = {"ar": 1.0, "sd": 2.0, "parallel": 3.0, "generate": 0.5}
    return [MethodRow(**{**given, "method": name, "speedup_vs_ar": speed}) for name, speed in speeds.items()]


def test_the_conclusions(rows: list[MethodRow]) -> None:
    rows[2] = msgspec.structs.replace(rows[2], predicted=4.0, speedup_vs_ar_all_cores=1.5)
    lines = conclusions(rows)
    assert lines[0] == "parallel: 3.00× plain decoding, 1.50× plain decoding on all cores; " + (
        "0.750 of theorem 7, which says 4.00×"
    )
    assert lines[1] == "parallel decodes faster than sd 1.50×, generate 6.00×"
    assert "on two cores" in lines


def test_the_picture_says_what_it_shows(rows: list[MethodRow], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def measured(*_: object, **__: object) -> list[MethodRow]:
        return [msgspec.structs.replace(row, speedup_vs_ar_quartiles=2 * (row.speedup_vs_ar,)) for row in rows]

    saved: list[Figure] = []
    monkeypatch.setattr("pvlm.bench.comparison.measure_methods", measured)
    monkeypatch.setattr("pvlm.cli.bench.common.save_plot", lambda _, figure: saved.append(figure))
    assert main(["bench", "--plot", str(tmp_path / "speed.png")]) == 0
    caption = saved[0].get_supxlabel()
    for words in ("on two cores", "n = 1 rounds", "◇ theory", "grey: transformers", "bundled/target", "cores of"):
        assert words in caption


def test_other_tokens_are_an_exit_status(
    rows: list[MethodRow], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def measured(*_: object, **__: object) -> list[MethodRow]:
        return rows

    monkeypatch.setattr("pvlm.bench.comparison.measure_methods", measured)
    assert main(["bench"]) == 0
    rows[1] = msgspec.structs.replace(rows[1], same_tokens=False)
    assert main(["bench"]) == 1
    assert "NO" in capsys.readouterr().out


def test_bad_options_are_reported_before_anything_is_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "--methods", "sdd"]) == 2
    assert "invalid choice: 'sdd'" in capsys.readouterr().err
    assert main(["bench", "--plot", "speed.gif"]) == 1
    assert "must end in .png" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert main(["bench", "scaling", "--plot", "speed.png"]) == 1
    assert "pvlm[plot]" in capsys.readouterr().err
