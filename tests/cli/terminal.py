"""A terminal of a given size that runs a command, and knows what a person would see on its screen.

``python -m tests.cli.terminal COLUMNS COMMAND ...`` prints some screens on the way, and the last one.
"""

from __future__ import annotations

import fcntl
import os
import pty
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pyte

ROOT = Path(__file__).parents[2]
LIMIT_S = 60.0
CTRL_C = b"\x03"


class Terminal:
    """A command on a pseudo-terminal, and its screen. A context manager; leaving it ends the command."""

    def __init__(
        self,
        command: Sequence[str],
        columns: int = 80,
        lines: int = 40,
        environment: Mapping[str, str] | None = None,
        stderr: int | None = None,
    ) -> None:
        """``stderr``: a file descriptor that takes standard error instead of the terminal."""
        self._screen = pyte.Screen(columns, lines)
        self._stream = pyte.ByteStream(self._screen)
        self.screens: list[str] = []
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        kept = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "COLUMNS", "CI")}
        self._process = subprocess.Popen(
            [sys.executable, "-c", CONTROLLING, *command],
            stdin=slave,
            stdout=slave,
            stderr=slave if stderr is None else stderr,
            env={**kept, "TERM": "xterm-256color", "PYTHONPATH": str(ROOT), **(environment or {})},
            start_new_session=True,
        )
        os.close(slave)

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *error: object) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._master)

    def press(self, keys: bytes) -> None:
        """Type keys."""
        os.write(self._master, keys)

    def wait_for(self, seen: Callable[[str], bool]) -> str:
        """Wait for a screen, and return it."""
        until = time.monotonic() + LIMIT_S
        while not seen(self.screen):
            assert self._read(until), f"the command ended, or {LIMIT_S:g} s passed:\n{self.screen}"
        return self.screen

    def wait(self, limit_s: float = LIMIT_S) -> int:
        """Wait for the end of the command, and return its exit status."""
        until = time.monotonic() + limit_s
        while self._read(until):
            pass
        return self._process.wait(LIMIT_S)

    @property
    def screen(self) -> str:
        """The lines of the screen, without trailing blanks."""
        return "\n".join(line.rstrip() for line in self._screen.display).rstrip()

    def _read(self, until: float) -> bool:
        if not select.select([self._master], [], [], max(0.0, until - time.monotonic()))[0]:
            return False
        try:
            received = os.read(self._master, 65536)
        except OSError:  # the other side is closed
            return False
        self._stream.feed(received)
        if not self.screens or self.screens[-1] != self.screen:
            self.screens.append(self.screen)
        return bool(received)


CONTROLLING = (
    "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execvp(sys.argv[1], sys.argv[1:])"
)
"""Makes the terminal that of the command, so that Ctrl-C reaches it."""


def main(columns: str, *command: str) -> None:
    """Print a recording."""
    with Terminal(command, columns=int(columns)) as terminal:
        status = terminal.wait(600)
        shown = terminal.screens
        for index in sorted({round(part * (len(shown) - 1) / SCREENS) for part in range(SCREENS + 1)}):
            sys.stdout.write(f"--- screen {index + 1} of {len(shown)}\n{shown[index]}\n")
        sys.stdout.write(f"--- exit status {status}\n")


SCREENS = 8
"""Number of screens in a recording, but for the last."""

if __name__ == "__main__":
    main(*sys.argv[1:])
