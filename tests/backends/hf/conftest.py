"""Fixtures for the tests of `hf`: checkpoints of families without a folder."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from tests.backends.hf.generic_checkpoints import generic_checkpoint


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def generic(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A checkpoint by its family and its number of layers; each is made once. Not to be changed."""
    folder = tmp_path_factory.mktemp("generic")

    @cache
    def find(name: str, layers: int = 3) -> Path:
        return generic_checkpoint(folder / f"{name}-{layers}", name, layers=layers, seed=layers)

    return find
