"""A process of a comparison that is no worker of an engine: it runs models by itself, on given cores."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from multiprocessing import get_context, parent_process
from types import TracebackType
from typing import Self, TypeVar

import anyio.to_thread

from pvlm.errors import ModelError

T = TypeVar("T")


class ModelProcess:
    """A process with its own cores. An async context manager.

    ``what``: what runs in it, for errors. ``load``: called first in the process, to load the models.
    """

    def __init__(self, what: str, cores: Sequence[int], load: Callable[[], None]) -> None:
        self.process = 0
        """Process id, while the process runs; 0 before."""
        self._what = what
        self._cores = tuple(cores)
        self._load = load
        self._pool = ProcessPoolExecutor(1, get_context("spawn"))

    async def __aenter__(self) -> Self:
        """Load the models. Raises ModelError."""
        try:
            self.process = await self._run(partial(_start, self._cores, self._load))
        except BaseException:
            self._stop()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stop()

    def _stop(self) -> None:
        self._pool.shutdown(cancel_futures=True)

    async def _run(self, what: Callable[[], T]) -> T:
        """Call a function in the process. Raises ModelError."""
        try:
            return await anyio.to_thread.run_sync(lambda: self._pool.submit(what).result(), abandon_on_cancel=True)
        except BrokenProcessPool as error:
            raise ModelError(f"the process of {self._what} has ended; its messages are on standard error") from error
        except Exception as error:
            raise ModelError(f"{self._what}: {type(error).__name__}: {error}") from error


# ---- in the process -----------------------------------------------------------------------------------------------


def _start(cores: tuple[int, ...], load: Callable[[], None]) -> int:
    """Load the models. Returns the process id."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    os.sched_setaffinity(0, cores)
    load()
    return os.getpid()


def _leave_with_parent() -> None:
    """Exit when the parent dies for any reason. Otherwise a pool's process would wait for work forever."""
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
