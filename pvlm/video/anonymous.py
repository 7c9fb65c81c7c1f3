"""Files without a name: in memory where the system supports it, deleted when the last process closes them."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def anonymous_file() -> Iterator[int]:
    """A file descriptor, open for reading and writing; child processes inherit it only if it is passed to them."""
    if hasattr(os, "memfd_create"):
        fd = os.memfd_create("pvlm-video")
        try:
            yield fd
        finally:
            os.close(fd)
    else:
        with tempfile.TemporaryFile() as file:
            yield file.fileno()


def read_all(fd: int, limit: int = 1 << 20) -> bytes:
    """The first ``limit`` bytes, whatever the position of the descriptor."""
    return os.pread(fd, min(limit, os.fstat(fd).st_size), 0)


def write_all(fd: int, data: bytes | bytearray | memoryview) -> None:
    """Write all bytes at the position of the descriptor. Raises OSError."""
    view = memoryview(data).cast("B")
    while view:
        view = view[os.write(fd, view) :]
