"""The mark that an actor sets before each unit of work: whose unit it is. It outlives the actor."""

from __future__ import annotations

import mmap
import os
import struct

NOBODY = 0
"""No session has this number."""
_NUMBER = struct.Struct("<Q")


class Mark:
    """The mark of an actor in a thread, which shares its memory with the engine."""

    def __init__(self) -> None:
        self._session = NOBODY

    def set(self, session: int) -> None:
        """A unit of work for ``session`` begins; `NOBODY`: it has ended."""
        self._session = session

    def read(self) -> int:
        """The session whose unit of work is being done, or was when the actor died; `NOBODY`: none."""
        return self._session

    def close(self) -> None:
        """Free what holds the mark; it cannot be read any more. May be called twice."""


class SharedMark(Mark):
    """The mark of an actor in a process: a page of memory that worker and engine share.

    A message would cost the engine a turn of its event loop for each pass, and a worker that dies at once may not get
    it out. What was written to shared memory stays, however the process ends.
    """

    def __init__(self, file: int) -> None:
        """``file``: descriptor of the memory. The mark does not need it any longer."""
        super().__init__()
        self._memory = mmap.mmap(file, _NUMBER.size)

    def set(self, session: int) -> None:
        _NUMBER.pack_into(self._memory, 0, session)

    def read(self) -> int:
        return int(_NUMBER.unpack_from(self._memory)[0])

    def close(self) -> None:
        self._memory.close()


def shared_memory() -> int:
    """A descriptor of memory that holds one mark, for a worker to inherit."""
    file = os.memfd_create("pvlm-mark")
    os.ftruncate(file, _NUMBER.size)
    return file
