"""Chaos runs on asyncio, and leaves neither a process nor a file behind."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from tests.support.processes import children


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(autouse=True)
def _quiet() -> None:
    """Thousands of faults are logged."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger("critical"))


@pytest.fixture(autouse=True)
def _nothing_left(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    temporary = tmp_path_factory.mktemp("t")
    monkeypatch.setenv("TMPDIR", str(temporary))
    monkeypatch.setattr(tempfile, "tempdir", None)
    running = set(children())
    yield
    assert set(children()) <= running
    assert [str(path) for path in Path(temporary).iterdir()] == []
