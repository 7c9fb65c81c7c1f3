"""The standard streams of the command's own process: closed ones, and those whose encoding lacks characters."""

from __future__ import annotations

import errno
import os
import sys

from pvlm.errors import PvlmError

OUTPUT_ERRORS = (errno.EPIPE, errno.ENOSPC, errno.EIO, errno.EDQUOT)
"""Numbers of the errors of an output that takes no more."""


class OutputError(PvlmError):
    """Standard output takes no more text."""


def prepare() -> None:
    """Take the place of closed streams, and let no character stop the output. Raises OutputError without an output.

    A place that stayed free would be taken by the next file or socket that is opened, and prints would go there.
    Characters that the encoding of standard output lacks are shown as escapes.
    """
    if sys.stdin is None:
        sys.stdin = open(os.open(os.devnull, os.O_RDONLY), encoding="utf-8")  # noqa: SIM115
    output_closed = sys.stdout is None
    if output_closed:
        sys.stdout = open(os.open(os.devnull, os.O_WRONLY), "w", encoding="utf-8")  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = open(os.open(os.devnull, os.O_WRONLY), "w", encoding="utf-8")  # noqa: SIM115
    if output_closed:
        raise OutputError("standard output is closed")
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")


def shows_unicode() -> bool:
    """Whether standard output takes every character as it is."""
    return (sys.stdout.encoding or "").lower().replace("-", "").startswith("utf")


def write(text: str) -> None:
    """Write text to standard output at once, as it is. Raises OutputError."""
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except OSError as error:
        raise failed(error) from None


def write_out() -> None:
    """Write what is still buffered. Raises OutputError."""
    write("")


def failed(error: OSError) -> OutputError:
    """The error for output that failed; nothing more is written when the process ends."""
    if (output := sys.__stdout__) is not None and sys.stdout is output:
        os.dup2(os.open(os.devnull, os.O_WRONLY), output.fileno())
    if isinstance(error, BrokenPipeError):
        return OutputError("standard output was closed by its reader")
    return OutputError(f"cannot write to standard output: {error.strerror}")
