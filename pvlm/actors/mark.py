"""The mark that an actor sets before each unit of work: whose unit it is. It outlives the actor."""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Callable

MOST = 64
"""Sessions that a mark can hold; of a unit for more it holds the first ones."""
_NUMBERS = struct.Struct(f"<{1 + MOST}Q")


class Mark:
    """The mark of an actor in a thread, which shares its memory with the engine."""

    def __init__(self) -> None:
        self._sessions: tuple[int, ...] = ()

    def set(self, *sessions: int) -> None:
        """A unit of work for these sessions begins; without any, it has ended."""
        self._sessions = sessions

    def read(self) -> tuple[int, ...]:
        """The sessions whose unit of work is being done, or was when the actor died."""
        return self._sessions

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
        self._memory = mmap.mmap(file, _NUMBERS.size)

    def set(self, *sessions: int) -> None:
        count = min(len(sessions), MOST)
        struct.pack_into(f"<{1 + count}Q", self._memory, 0, count, *sessions[:count])

    def read(self) -> tuple[int, ...]:
        count, *sessions = _NUMBERS.unpack_from(self._memory)
        return tuple(sessions[:count])

    def close(self) -> None:
        self._memory.close()


class ToldMark(Mark):
    """The mark of an actor on another host: it reports each change of its sessions, but not the end of a unit."""

    def __init__(self, tell: Callable[[tuple[int, ...]], None]) -> None:
        super().__init__()
        self._tell = tell

    def set(self, *sessions: int) -> None:
        if sessions and sessions != self.read():
            super().set(*sessions)
            self._tell(sessions)


def shared_memory() -> int:
    """A descriptor of memory that holds one mark, for a worker to inherit."""
    file = os.memfd_create("pvlm-mark")
    os.ftruncate(file, _NUMBERS.size)
    return file
