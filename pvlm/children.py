"""Child processes: how each one is started and ended, be it a worker or a decoder.

A child imports what this process imports. Its interpreter starts without the current directory (``python -P``), and
then gets this process's ``sys.path``. What Python itself put in front of that path, the current directory or that of
the script, comes last. So a user's ``queue.py`` or ``numpy.py`` there is never taken for the library's, and a plug-in
there is still found.
"""

from __future__ import annotations

import asyncio
import errno
import os
import re
import resource
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence

import anyio

from pvlm.errors import reason_of

KILLED_S = 30.0
"""How long a killed process may take to be gone: its memory, on a GPU too, is freed first."""

_PLACES = "PVLM_PLACES"
_BEGIN = (
    f"import os, sys; sys.path[:] = os.environ.pop('{_PLACES}').split('\\n'); del sys.argv[0]; "
    "import runpy; runpy.run_module(sys.argv[0], run_name='__main__', alter_sys=True)"
)
"""Imports nothing from a file before the path is set: ``os`` and ``sys`` are part of the interpreter."""

LIMITS = {
    errno.EMFILE: ("open files of a process (ulimit -n)", resource.RLIMIT_NOFILE),
    errno.ENFILE: ("open files of this machine (fs.file-max)", None),
    errno.EAGAIN: ("processes and threads of a user (ulimit -u)", resource.RLIMIT_NPROC),
    errno.ENOMEM: ("memory of a process (ulimit -v), or of this machine", resource.RLIMIT_AS),
}


async def start_child(
    module: str,
    *arguments: str,
    stdout: int = subprocess.DEVNULL,
    stderr: int = subprocess.PIPE,
    pass_fds: Sequence[int] = (),
    environment: Mapping[str, str] | None = None,
) -> asyncio.subprocess.Process:
    """Start ``python -m module arguments`` with its standard input as a life-line; see `leave_with_parent`.

    ``environment`` adds to that of this process. A Ctrl-C in a terminal does not reach the child. A cancellation waits
    until the child has started, so none is left without an owner. Raises OSError; `reached_limit` explains it.
    """
    with anyio.CancelScope(shield=True):
        process = await asyncio.create_subprocess_exec(
            sys.executable or "/proc/self/exe",  # empty where python was found without a PATH
            "-I" if sys.flags.isolated else "-P",
            "-c",
            _BEGIN,
            module,
            *arguments,
            stdin=subprocess.PIPE,
            stdout=stdout,
            stderr=stderr,
            env={"PATH": os.defpath, **os.environ, **(environment or {}), _PLACES: "\n".join(places())},
            pass_fds=pass_fds,
            cwd="/" if _absolute("") is None else None,  # libraries fail to load in a directory that is deleted
            start_new_session=True,
        )
    return process


async def end_child(process: asyncio.subprocess.Process) -> None:
    """Kill a child that still runs, and wait until it is gone, at most `KILLED_S`. May be called twice."""
    if process.returncode is None:
        try:
            process.kill()
        except ProcessLookupError:
            pass
        with anyio.move_on_after(KILLED_S, shield=True):
            await process.wait()
    if process.stdin is not None:
        process.stdin.close()


def leave_with_parent() -> None:
    """Exit when the parent dies, however it does: then, and only then, does standard input end. Called by a child."""
    lifeline = os.dup(0)

    def wait() -> None:
        while os.read(lifeline, 4096):
            pass
        os._exit(3)

    threading.Thread(target=wait, name="lifeline", daemon=True).start()


def reached_limit(error: Exception) -> str:
    """The text of an error; where it means that a limit of the system was reached, with that limit and its value."""
    text, number = reason_of(error), 0
    if isinstance(error, OSError) and error.errno and error.strerror:
        number = error.errno
        text = error.strerror if error.filename is None else f"{error.strerror}: '{error.filename}'"
    elif by_number := re.search(r"\(os error (\d+)\)", text):  # of a library in Rust
        number = int(by_number[1])
    elif "can't start new thread" in text:
        number = errno.EAGAIN
    if number not in LIMITS:
        return text
    what, name = LIMITS[number]
    value = resource.RLIM_INFINITY if name is None else resource.getrlimit(name)[0]
    return f"{text}: the limit to the {what} is reached" + (
        f"; it is {value}" if value != resource.RLIM_INFINITY else ""
    )


def places() -> list[str]:
    """Return what a child that is started now has as its ``sys.path``."""
    main = getattr(sys.modules.get("__main__"), "__file__", None)
    in_front = {_absolute(os.path.dirname(main)) if main else None, _absolute("")}
    in_front.discard(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))  # else it may be another pvlm
    found = [place for entry in sys.path if (place := _absolute(entry)) is not None]
    return sorted(dict.fromkeys(found), key=in_front.__contains__)


def _absolute(place: str) -> str | None:
    """The place that an entry means now; None for one in a current directory that is deleted."""
    try:
        return os.path.abspath(place or os.getcwd())
    except OSError:
        return None
