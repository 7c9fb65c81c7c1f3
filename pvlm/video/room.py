"""Room for decoded frames in memory, which all answers of an engine share."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from pvlm.errors import OptionError

MAX_BYTES = 8 << 30
"""Bytes of decoded frames before they are resized, unless a setting says otherwise."""


@dataclass(eq=False)
class _Waiter:
    size: int
    has_room: asyncio.Event = field(default_factory=asyncio.Event)


class Room:
    """``max_bytes`` of memory: first come, first served. Used in one event loop."""

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self.max_bytes = max_bytes
        self._free = max_bytes
        self._waiting: deque[_Waiter] = deque()

    @property
    def taken_bytes(self) -> int:
        return self.max_bytes - self._free

    async def take(self, size: int) -> None:
        """Wait until ``size`` bytes are free, and take them. Raises OptionError if there are never so many."""
        if size > self.max_bytes:
            raise OptionError(f"{size} bytes of frames are more than all videos may take: {self.max_bytes}")
        waiter = _Waiter(size)
        self._waiting.append(waiter)
        self._admit()
        try:
            await waiter.has_room.wait()
        except BaseException:
            if waiter.has_room.is_set():
                self.give_back(size)
            else:
                self._waiting.remove(waiter)
                self._admit()
            raise

    def give_back(self, size: int) -> None:
        """Free bytes that were taken."""
        self._free += size
        self._admit()

    def lease(self) -> Lease:
        """Room for one video; a context manager."""
        return Lease(self)

    def _admit(self) -> None:
        while self._waiting and self._waiting[0].size <= self._free:
            waiter = self._waiting.popleft()
            self._free -= waiter.size
            waiter.has_room.set()


class Lease:
    """Room for one video, from its first frame until it is left."""

    def __init__(self, room: Room) -> None:
        self._room = room
        self._taken = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._give_back()

    @property
    def max_bytes(self) -> int:
        return self._room.max_bytes

    async def take(self, size: int) -> None:
        """Wait for ``size`` bytes, which replace those of an earlier call. Raises OptionError if that is too much."""
        self._give_back()
        await self._room.take(size)
        self._taken = size

    def _give_back(self) -> None:
        taken, self._taken = self._taken, 0
        self._room.give_back(taken)
