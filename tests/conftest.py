"""Settings for all tests."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest
import structlog
import torch
from hypothesis import settings

# A time limit for each example would fail on a busy machine.
settings.register_profile("no-deadline", deadline=None)
settings.load_profile("no-deadline")


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> Iterator[None]:
    """Tensors are small here: threads would only get in each other's way."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def _logs_as_they_were() -> Iterator[None]:
    """A command that was tested has pointed the log at a standard error that is closed when its test is over."""
    yield
    structlog.reset_defaults()


def pytest_sessionstart() -> None:
    gc.disable()


def pytest_collection_finish() -> None:
    """Tests that collect garbage need not look through all that was imported for them."""
    gc.freeze()
    gc.enable()


@pytest.hookimpl(tryfirst=True)
def pytest_fixture_setup() -> None:
    _forget_library()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_call() -> None:
    _forget_library()


def _forget_library() -> None:
    """Let tests and fixtures run loops of their own.

    Where the package sniffio is installed, anyio's runner of async fixtures names asyncio for the whole thread as long
    as a fixture of a wide scope lives, and `anyio.run` refuses a second loop.
    """
    try:
        import sniffio
    except ImportError:
        return
    sniffio.current_async_library_cvar.set(None)
