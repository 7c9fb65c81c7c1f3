"""Things by name, bounded by their size in bytes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

Name = TypeVar("Name", bound=Hashable)
Thing = TypeVar("Thing")


class Kept(Generic[Name, Thing]):
    """At most ``max_bytes`` in all; what was used least recently goes first."""

    def __init__(self, max_bytes: int, size_of: Callable[[Thing], int]) -> None:
        self.max_bytes = max_bytes
        self.nbytes = 0
        self._size_of = size_of
        self._kept: OrderedDict[Name, Thing] = OrderedDict()

    def keep(self, name: Name, thing: Thing) -> None:
        """Keep a thing in place of what had this name, unless it is larger than all that may be kept."""
        if name in self._kept:
            self.nbytes -= self._size_of(self._kept.pop(name))
        if self._size_of(thing) > self.max_bytes:
            return
        self._kept[name] = thing
        self.nbytes += self._size_of(thing)
        while self.nbytes > self.max_bytes:
            _, dropped = self._kept.popitem(last=False)
            self.nbytes -= self._size_of(dropped)

    def find(self, name: Name) -> Thing | None:
        """The thing of this name; None if it is not kept, or not any more."""
        if name not in self._kept:
            return None
        self._kept.move_to_end(name)
        return self._kept[name]
