"""The toy models as installed plug-ins, ``toy`` and ``broken``, for engines and for their worker processes."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[2]
TARGET = "0"
DRAFT = "1.0"


@contextmanager
def toy_plugin(folder: Path) -> Iterator[None]:
    """Install the toys into ``folder``, which is on the path of this process and of processes that it starts."""
    entries = "[pvlm.backends]\ntoy = tests.support.toy:ToyBackend\nbroken = tests.support.broken:BrokenBackend\n"
    with plugins(folder, "pvlm-toy", entries):
        yield


@contextmanager
def plugins(folder: Path, name: str, entry_points: str) -> Iterator[None]:
    """As `toy_plugin`, for any entry points of a package ``name``."""
    info = folder / f"{name.replace('-', '_')}-0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0\n")
    (info / "entry_points.txt").write_text(entry_points)
    before = os.environ.get("PYTHONPATH")
    places = [str(folder), str(ROOT)]
    os.environ["PYTHONPATH"] = os.pathsep.join([*places, *([before] if before else [])])
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before
