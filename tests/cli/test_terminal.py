"""What a person sees on the screen: progress, then the text as it was written, then the figures."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.command import PIECES
from tests.cli.terminal import ROOT, Terminal

COMMAND = [sys.executable, "-m", "tests.cli.command"]
ANSWER = [*COMMAND, "answer", "clip.mp4", "Describe the video."]
TEXT = "".join(PIECES)


def cut(text: str, columns: int) -> str:
    """Text as a terminal shows it, which breaks lines anywhere."""
    return "\n".join(text[start : start + columns].rstrip() for start in range(0, len(text), columns))


@pytest.mark.parametrize(("columns", "colours"), [(80, {}), (60, {"NO_COLOR": "1"})], ids=["80", "60, NO_COLOR"])
def test_progress_gives_way_to_the_text_as_it_is_written(columns: int, colours: dict[str, str]) -> None:
    with Terminal(ANSWER, columns=columns, environment=colours) as terminal:
        assert terminal.wait() == 0
        text, figures = terminal.screen.split("method", 1)
        assert text == cut(TEXT, columns) + "\n"
        assert "first token after" in figures
        steps = ("loading the target", "loading the draft", "reading the video", "prefill")
        for step in steps:
            assert any(step in screen for screen in terminal.screens), f"{step} was never shown"
        assert not any(step in terminal.screen for step in (*steps[:3], "starting", "working"))
        assert "".join(PIECES[:2]) in terminal.screens
        assert max(len(line) for screen in terminal.screens for line in screen.split("\n")) <= columns


def test_lines_of_the_log_and_notes_stand_above_the_progress() -> None:
    listening = ["--draft-listen", "tcp://127.0.0.1:5555"]
    with Terminal([*ANSWER, *listening], columns=160, environment={"LOG": "draft_is_late"}) as terminal:
        assert terminal.wait() == 0
        lines = terminal.screen.split("\n")
        assert lines[0].startswith("waiting for the draft; run on its host: pvlm worker --role draft ")
        assert re.fullmatch(r"[\d-]+ [\d:]+ \[error +\] draft_is_late", lines[1])
        assert lines[2] == TEXT


def test_the_demo_keeps_its_label() -> None:
    with Terminal([*COMMAND, "demo", "--rounds", "1"], columns=120, lines=80) as terminal:
        assert terminal.wait() == 0
        lines = terminal.screen.split("\n")
        assert lines[1] == "question  Describe the video."
        assert lines[2] == f"answer    {TEXT}"
        text = terminal.screen
        assert "draft and target" in text  # in turns
        assert "emulated at 0.1" in text
        assert text.count("times as fast as plain decoding on the same cores, with the same tokens.") == 2
        assert any("measuring" in screen for screen in terminal.screens)


def test_with_standard_error_elsewhere_the_terminal_has_the_text_alone(tmp_path: Path) -> None:
    with (tmp_path / "errors").open("wb") as errors, Terminal(ANSWER, stderr=errors.fileno()) as terminal:
        assert terminal.wait() == 0
        assert terminal.screen == cut(TEXT, 80)
    written = (tmp_path / "errors").read_text()
    assert written.startswith("method")
    assert "\x1b" not in written


def test_without_a_terminal_there_are_no_escapes() -> None:
    done = subprocess.run(ANSWER, capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout == TEXT + "\n"
    assert done.stderr.startswith("method")
    assert "\x1b" not in done.stderr


def test_quiet_is_the_text_alone() -> None:
    with Terminal([*ANSWER, "--quiet"]) as terminal:
        assert terminal.wait() == 0
        assert terminal.screens[-1] == cut(TEXT, 80)
        assert not any("starting" in screen for screen in terminal.screens)
