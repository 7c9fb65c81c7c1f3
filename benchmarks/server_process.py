"""``pvlm serve`` as a process, for measurements."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pvlm.errors import PvlmError

STARTING_S = 300.0
ENDING_S = 60.0


@contextmanager
def serving(*arguments: str) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """The address of a server on a free port of loopback, and its process. Raises PvlmError if it does not start."""
    command = [sys.executable, "-m", "pvlm", "serve", "--port", "0", *arguments]
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        with log.open("w") as output:
            process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        try:
            deadline = time.monotonic() + STARTING_S
            while (found := re.search(r"serving at (http://\S+)", log.read_text())) is None:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise PvlmError(f"pvlm serve did not start: {log.read_text()[-500:]}")
                time.sleep(0.1)
            yield found[1], process
        finally:
            process.terminate()
            process.wait(ENDING_S)
