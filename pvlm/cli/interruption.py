"""Ctrl-C: one line and exit status 130 at any moment, and time for a running command to close what it opened."""

from __future__ import annotations

import os
import signal
from contextlib import contextmanager

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator
    from typing import Any, TypeVar

    Result = TypeVar("Result")

INTERRUPTED = 130
SHOW_CURSOR = "\x1b[?25h"
"""A progress display hides it."""


def interrupted_line() -> str:
    """The line that reports Ctrl-C. On a terminal it starts below the echo of the key."""
    return "\npvlm: interrupted\n" if os.isatty(2) else "pvlm: interrupted\n"


def quit_on_interrupt() -> None:
    """Let Ctrl-C end this process at once, for moments in which nothing needs to be closed."""
    signal.signal(signal.SIGINT, _quit)


def _quit(*_: object) -> None:
    line = interrupted_line()
    try:
        os.write(2, (SHOW_CURSOR + line if os.isatty(2) else line).encode())
    finally:
        os._exit(INTERRUPTED)


@contextmanager
def closing_on_interrupt() -> Iterator[None]:
    """Raise KeyboardInterrupt on Ctrl-C in this block, so that what it opened is closed.

    It changes only the handler of `quit_on_interrupt`: another program's handler stays.
    """
    before = signal.getsignal(signal.SIGINT)
    if before is not _quit:
        yield
        return
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def run_async(function: Callable[[], Awaitable[Result]]) -> Result:
    """Run ``function`` on asyncio. The first Ctrl-C cancels it; in its own process, the second ends the process."""
    import anyio

    async def run() -> Result:
        cancel: Any = signal.getsignal(signal.SIGINT)
        if owned:

            def cancel_once(*received: Any) -> None:
                quit_on_interrupt()
                cancel(*received)

            signal.signal(signal.SIGINT, cancel_once)
        return await function()

    owned = signal.getsignal(signal.SIGINT) is _quit
    with closing_on_interrupt():
        return anyio.run(run)
