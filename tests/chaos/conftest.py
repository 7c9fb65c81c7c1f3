"""Chaos runs on asyncio, and leaves neither a process nor a file behind."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import structlog

from tests.support.processes import nothing_left


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(autouse=True)
def _quiet() -> None:
    """Thousands of faults are logged."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger("critical"))


@pytest.fixture(autouse=True)
def _nothing_left(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with nothing_left(monkeypatch, tmp_path_factory.mktemp("t")):
        yield
