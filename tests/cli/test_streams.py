"""Standard streams that are closed, full, or short of characters: one line, and never a traceback."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from tests.cli.command import PIECES
from tests.cli.terminal import ROOT

COMMAND = f"{sys.executable} -m tests.cli.command"
ANSWER = f"{COMMAND} answer clip.mp4 'Describe the video.'"


def shell(command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command in bash; its exit status is that of the first command of a pipe."""
    return subprocess.run(
        ["bash", "-c", f"{command}; exit ${{PIPESTATUS[0]}}"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, **environment},
    )


@pytest.mark.parametrize(
    ("command", "line"),
    [
        (f"{ANSWER} >&-", "standard output is closed"),
        (f"{ANSWER} >/dev/full", "cannot write to standard output: No space left on device"),
        (f"PAUSE=reader {ANSWER} | head -c 1 | cat", "standard output was closed by its reader"),
        (f"{COMMAND} --version >/dev/full", "cannot write to standard output: No space left on device"),
        (f"{COMMAND} --help >/dev/full", "cannot write to standard output: No space left on device"),
    ],
    ids=["closed", "full", "pipe", "version", "help"],
)
def test_an_output_that_takes_nothing_is_one_line(command: str, line: str) -> None:
    done = shell(command)
    assert (done.returncode, done.stderr) == (1, f"pvlm: error: {line}\n")


def test_other_closed_streams_change_nothing() -> None:
    done = shell(f"{ANSWER} <&- 2>&-")
    assert (done.returncode, done.stdout) == (0, "".join(PIECES) + "\n")


def test_an_ascii_output_has_escapes_and_valid_json() -> None:
    written = shell(f"{ANSWER} --json", PYTHONIOENCODING="ascii", PIECE="drei Höhlen").stdout
    assert json.loads(written)["text"] == "drei Höhlen"
    written = shell(f"{COMMAND} demo --rounds 1", PYTHONIOENCODING="ascii", PIECE="drei Höhlen").stdout
    assert "answer    drei H\\xf6hlen" in written
    assert "###^" in written


def test_a_question_may_come_from_standard_input() -> None:
    done = shell(f"printf 'Wo ist die Höhle?\\n' | {COMMAND} answer clip.mp4 - -q", PIECE="QUESTION")
    assert done.stdout == "Wo ist die Höhle?\n"
    done = shell(f"printf '\\377' | {COMMAND} answer clip.mp4 -")
    assert "not UTF-8" in done.stderr
    assert done.stderr.count("\n") == 1
