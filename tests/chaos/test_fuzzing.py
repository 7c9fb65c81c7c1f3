"""Coverage-guided fuzzing, for half a minute each, where atheris is installed."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.chaos.storm import Figures, write
from tests.support.plugin import ROOT

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(300)]
SECONDS = 25


@pytest.mark.skipif(
    importlib.util.find_spec("atheris") is None,
    reason="NOT FUZZED: atheris is not installed (pip install atheris); make test tries the same with hypothesis",
)
@pytest.mark.parametrize("target", ["codec", "framing", "containers"])
def test_fuzzing_finds_nothing(target: str, tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "tests.chaos.fuzz",
        target,
        "--seconds",
        str(SECONDS),
        "--folder",
        str(tmp_path),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, errors="replace", timeout=280)
    left = [path.read_bytes()[:200] for path in tmp_path.iterdir() if path.is_file()]
    assert done.returncode == 0, f"{left} {done.stderr[-3000:]}"
    (runs,) = re.findall(r"Done (\d+) runs", done.stderr)
    figures = Figures(name=f"fuzzing {target}", answers=int(runs), outcomes={"as it should": int(runs)})
    write(figures)
    assert int(runs) > 1000
