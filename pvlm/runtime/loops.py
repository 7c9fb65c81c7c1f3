"""Event loops: the one that an engine belongs to, and calls to it from threads without one."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import CancelledError, wait
from importlib import import_module
from typing import Any, TypeVar

from anyio.abc import TaskGroup

from pvlm.errors import EngineStateError

LOOK_EVERY_S = 1.0
"""How often a thread that waits for a loop checks that the loop still runs."""

Result = TypeVar("Result")


def running_loop() -> asyncio.AbstractEventLoop:
    """The event loop of the caller. Raises EngineStateError without one."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        raise EngineStateError("pvlm runs on asyncio: call it from a running asyncio event loop") from None


def check_loop(loop: asyncio.AbstractEventLoop) -> None:
    """Raise EngineStateError where the caller runs on another event loop than ``loop``."""
    if running_loop() is not loop:
        _check_running(loop)
        raise EngineStateError(
            "this engine is open on another event loop: await it there, or call `answer_sync` in a thread, such as "
            "`await asyncio.to_thread(engine.answer_sync, video, question)`"
        )


def check_no_loop(what: str, instead: str) -> None:
    """Raise EngineStateError where the caller runs on an event loop, which ``what`` would block."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    raise EngineStateError(f"{what} was called inside an event loop: use `{instead}` there")


def call(loop: asyncio.AbstractEventLoop, coroutine: Coroutine[Any, Any, Result]) -> Result:
    """Run a coroutine on a loop that runs in another thread, and return its result.

    Ctrl-C cancels the coroutine. Raises EngineStateError if the loop does not run, or ends meanwhile.
    """
    try:
        _check_running(loop)
        future = asyncio.run_coroutine_threadsafe(coroutine, loop)
    except BaseException:
        coroutine.close()
        raise
    try:
        while not wait([future], LOOK_EVERY_S).done:
            _check_running(loop)
        return future.result()
    except CancelledError:
        raise EngineStateError("the event loop of this engine has ended meanwhile") from None
    except BaseException:
        future.cancel()
        raise


def _check_running(loop: asyncio.AbstractEventLoop) -> None:
    if not loop.is_running():
        raise EngineStateError(
            "the event loop on which this engine was opened has ended: close an engine before its loop ends, and make "
            "another with Engine.create()"
        )


class LoopThread:
    """An event loop in a thread of its own. It is a daemon: an engine that is left open keeps no program from ending,
    as anyio's portal would.
    """

    def __init__(self) -> None:
        self._started = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), name="pvlm-loop", daemon=True)
        self._thread.start()
        self._started.wait()

    async def _serve(self) -> None:
        self.loop = asyncio.get_running_loop()
        self._stopped = asyncio.Event()
        self._started.set()
        await self._stopped.wait()

    def close(self) -> None:
        """End the loop; its tasks are cancelled. Returns when they have ended."""
        self.loop.call_soon_threadsafe(self._stopped.set)
        self._thread.join()


def start_soon(tasks: TaskGroup, function: Callable[..., Coroutine[Any, Any, None]], *arguments: Any) -> None:
    """`TaskGroup.start_soon` that works in a callback of the event loop too.

    Where the package sniffio is installed, anyio asks it, and it recognises asyncio inside of tasks alone.
    """
    contextvars.copy_context().run(_start_soon, tasks, function, *arguments)


def _start_soon(tasks: TaskGroup, function: Callable[..., Coroutine[Any, Any, None]], *arguments: Any) -> None:
    try:
        sniffio = import_module("sniffio")  # not a dependency
    except ImportError:
        pass
    else:
        sniffio.current_async_library_cvar.set("asyncio")
    tasks.start_soon(function, *arguments)
