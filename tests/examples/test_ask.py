from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from pvlm import Answer

from .conftest import EXAMPLES, QUESTION


def ask(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, EXAMPLES / "ask.py", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_it_prints_the_answer_and_what_it_took(clip: Path, reference: Answer) -> None:
    done = ask(clip, QUESTION)
    assert done.returncode == 0, done.stderr
    assert reference.text in done.stdout
    assert f"{len(reference.tokens)} tokens in" in done.stderr
    assert "of the drafts accepted" in done.stderr


def test_an_error_is_one_line(tmp_path: Path) -> None:
    done = ask(tmp_path / "missing.mp4", QUESTION)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("error: cannot read video")
    assert "Traceback" not in done.stderr


def test_it_has_a_usage() -> None:
    done = ask()
    assert done.returncode == 1
    assert done.stderr == "usage: python ask.py VIDEO QUESTION\n"


def test_it_stays_short() -> None:
    assert len((EXAMPLES / "ask.py").read_text().splitlines()) <= 25
