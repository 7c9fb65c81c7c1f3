"""Cancels a task at chosen awaits, as frameworks do it: by `task.cancel()`, and again while it cleans up."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Coroutine, Generator
from contextlib import suppress
from typing import Any


class CancelledAt:
    """Awaits a coroutine, and cancels the task that awaits it at chosen ones of its awaits, counted from 1.

    An await counts where it suspends the task. ``awaits``: how many there were.
    """

    def __init__(self, coroutine: Coroutine[Any, Any, Any], at: Collection[int]) -> None:
        self.awaits = 0
        self._coroutine = coroutine
        self._at = at

    def __await__(self) -> Generator[Any, Any, Any]:
        task = asyncio.current_task()
        assert task is not None
        error: BaseException | None = None
        while True:
            try:
                waited = self._coroutine.send(None) if error is None else self._coroutine.throw(error)
            except StopIteration as done:
                return done.value
            self.awaits += 1
            if self.awaits in self._at:
                asyncio.get_running_loop().call_soon(task.cancel)
            error = None
            try:
                yield waited
            except BaseException as thrown:
                error = thrown


async def cancelled_at(coroutine: Coroutine[Any, Any, Any], at: Collection[int]) -> int:
    """Run a coroutine in a task of its own that is cancelled at these awaits. Return how many awaits there were.

    However it ends is well: what counts is what it leaves.
    """
    cancelled = CancelledAt(coroutine, at)

    async def run() -> None:
        with suppress(asyncio.CancelledError, Exception):
            await cancelled

    await asyncio.wait([asyncio.ensure_future(run())])
    return cancelled.awaits
