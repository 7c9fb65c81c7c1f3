"""``pvlm answer --trace DIR``."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path

import pytest

from pvlm.cli import main
from tests.support.pair import FLAGS

CLIP = str(files("pvlm") / "bundled" / "clips" / "one-scene.mp4")


def test_the_command_writes_a_trace(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "made" / "for it"
    arguments = [
        "answer",
        CLIP,
        "Describe the video.",
        *FLAGS,
        "--transport",
        "inproc",
        "--threads",
        "1",
        "--draft-threads",
        "1",
    ]
    assert main([*arguments, "--trace", str(folder)]) == 0
    text, figures = capsys.readouterr()
    assert f"trace: {folder}/timeline.html, {folder}/timeline.json, {folder}/frames.png" in figures
    assert json.loads((folder / "timeline.json").read_bytes())["otherData"]["text"] == text.strip()


def test_a_directory_that_cannot_be_written_is_told_before_a_model_is_looked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    arguments = ["answer", CLIP, "?", "--target", "/no/such/target", "--trace"]
    assert main([*arguments, str(tmp_path / "file")]) == 1
    assert main([*arguments, str(tmp_path / "file" / "in it")]) == 1
    told = capsys.readouterr().err.splitlines()
    assert told == [
        f"pvlm: error: cannot write a trace to the directory '{tmp_path}/file': File exists",
        f"pvlm: error: cannot write a trace to the directory '{tmp_path}/file/in it': Not a directory",
    ]


def test_where_the_answer_fails_the_trace_is_written_all_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["answer", CLIP, "What?", *FLAGS, "--transport", "inproc", "--threads", "1", "--max-tokens", "50000"]
    assert main([*arguments, "--trace", str(tmp_path)]) == 1
    told = capsys.readouterr().err
    assert f"trace: {tmp_path}/timeline.html" in told
    assert "pvlm: error:" in told
    assert "16384" in (tmp_path / "timeline.html").read_text(encoding="utf-8")
