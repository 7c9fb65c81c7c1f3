"""What runs below a test, and what it leaves behind."""

from __future__ import annotations

import gc
import os
import resource
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing import resource_tracker
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    import pytest


def children() -> list[psutil.Process]:
    """Processes below this one, zombies included, but for Python's own that stays once multiprocessing was used."""
    tracker = resource_tracker._resource_tracker._pid  # type: ignore[attr-defined]
    return [child for child in psutil.Process().children(recursive=True) if child.pid != tracker]


@contextmanager
def descriptors_left(count: int) -> Iterator[int]:
    """This process may open so many files and sockets more; gives its limit meanwhile."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = max(map(int, os.listdir("/proc/self/fd"))) + 50
    held: list[int] = []
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limits[1]))
        with suppress(OSError):
            while True:
                held.append(os.open(os.devnull, os.O_RDONLY))
        for _ in range(count):
            os.close(held.pop())
        yield limit
    finally:
        for descriptor in held:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


@contextmanager
def nothing_left(monkeypatch: pytest.MonkeyPatch, temporary: Path) -> Iterator[None]:
    """No process and no file in the temporary directory, which is ``temporary`` meanwhile, is left behind, and nothing
    that warns when it is collected.
    """
    monkeypatch.setenv("TMPDIR", str(temporary))
    monkeypatch.setattr(tempfile, "tempdir", None)
    running = set(children())
    yield
    gc.collect()
    assert set(children()) <= running
    assert [str(path) for path in temporary.iterdir()] == []
