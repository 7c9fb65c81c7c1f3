"""What an encoded video is, by its bytes: a name and a date say nothing of it."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from hashlib import blake2b

DIGEST_BYTES = 20
MOST_BYTES = 4 << 30
"""Of a file that is read for its digest. Reading the frames of a larger one may take less time than that."""

_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class Content:
    """``digest``: of the bytes. ``state``: of the file when they were read; None for bytes in memory."""

    digest: bytes
    path: str = ""
    state: tuple[int, ...] | None = None

    def unchanged(self) -> bool:
        """Whether the file was left alone since it was read."""
        try:
            return self.state is None or self.state == _state(os.stat(self.path))
        except OSError:
            return False


def content_of(source: object) -> Content | None:
    """Return the content of an encoded video: a path or bytes. Return None for frames, or if the file cannot be read.

    It reads the whole file, so call it in a thread.
    """
    if isinstance(source, bytes | bytearray | memoryview):
        return Content(blake2b(source, digest_size=DIGEST_BYTES).digest())
    if not isinstance(source, str | os.PathLike):
        return None
    path = os.fsdecode(source)
    digest = blake2b(digest_size=DIGEST_BYTES)
    try:
        with open(path, "rb", buffering=0, opener=_open_at_once) as file:
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode) or found.st_size > MOST_BYTES:
                return None
            while chunk := file.read(_CHUNK_BYTES):
                digest.update(chunk)
    except (OSError, ValueError):
        return None
    return Content(digest.digest(), path, _state(found))


def _open_at_once(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)  # opening a pipe would wait for its writer


def _state(found: os.stat_result) -> tuple[int, ...]:
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
