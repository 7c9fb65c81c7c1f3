"""Ctrl-C at any moment: one line, exit status 130, and no traceback."""

from __future__ import annotations

import sys

import pytest

from tests.cli.terminal import CTRL_C, Terminal

COMMAND = [sys.executable, "-m", "tests.cli.command", "answer", "clip.mp4", "Describe the video."]


@pytest.mark.parametrize("moment", ["import pvlm.cli.application", "import msgspec", "open", "text", "exit"])
def test_ctrl_c_ends_the_command_in_one_line(moment: str) -> None:
    with Terminal(COMMAND, environment={"PAUSE": moment}) as terminal:
        terminal.wait_for(lambda screen: f"[{moment}]" in screen)
        terminal.press(CTRL_C)
        status = terminal.wait()
        assert status == 130
        assert terminal.screen.count("pvlm: interrupted") == 1
        assert terminal.screen.endswith("pvlm: interrupted")
        assert "Traceback" not in terminal.screen
        assert not any(step in terminal.screen for step in ("starting", "working", "loading"))


def test_a_second_ctrl_c_does_not_wait_for_the_end_of_the_first() -> None:
    with Terminal(COMMAND, environment={"PAUSE": "text,close"}) as terminal:
        terminal.wait_for(lambda screen: "[text]" in screen)
        terminal.press(CTRL_C)
        terminal.wait_for(lambda screen: "[close]" in screen)
        terminal.press(CTRL_C)
        assert terminal.wait() == 130
        assert "Traceback" not in terminal.screen
        assert terminal.screen.endswith("pvlm: interrupted")
