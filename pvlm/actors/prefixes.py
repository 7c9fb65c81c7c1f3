"""The prefixes that an actor keeps between answers, bounded in bytes; what was used least recently goes first."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass

from pvlm_protocols.prefixes import KeptPrefix

View = Hashable
"""What distinguishes prefixes with equal keys: the early layer of a target's, the pruning of a draft's."""


@dataclass(eq=False)
class Entry:
    """A kept prefix. ``users``: sessions that run on it; ``children``: kept prefixes whose parent it is."""

    prefix: KeptPrefix
    view: View
    videos: frozenset[bytes]
    """Digests of the videos and images of the prompt that it comes from."""
    parent: Entry | None
    users: int = 0
    children: int = 0


@dataclass
class Report:
    """What is kept, and how many prefixes were evicted since the last report."""

    count: int = 0
    nbytes: int = 0
    evicted: int = 0


class Prefixes:
    """At most ``max_bytes`` of them. Each row counts once: a prefix counts what it adds to its parent.

    A prefix stays while a session runs on it, while a kept prefix needs its rows, and while its video is pinned.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.report = Report()
        self.changed = False
        """Since somebody has last set it to False."""
        self._entries: OrderedDict[tuple[bytes, View], Entry] = OrderedDict()
        self._views: dict[bytes, list[View]] = {}
        """Of the entries of each key."""
        self._pinned: frozenset[bytes] = frozenset()
        self._awaited: Counter[tuple[bytes, View]] = Counter()
        """Keys of the prefixes that sessions are about to compute."""

    def find(self, key: bytes, view: View) -> Entry | None:
        """The prefix of a key, which counts as used now. ``view``: None takes any."""
        views = self._views.get(key, [])
        found = self._entries[key, view] if view in views else None
        if view is None and views:
            found = self._entries[key, views[-1]]
        if found is not None:
            self._touch(found)
        return found

    def coming(self, key: bytes, view: View) -> bool:
        """Is a session about to compute this prefix?"""
        return bool(self._awaited[key, view])

    def announce(self, keys: Iterable[tuple[bytes, View]]) -> None:
        """A session is about to compute these prefixes. Call `withdraw` when it has done so, or has ended."""
        self._awaited.update(keys)

    def withdraw(self, keys: Iterable[tuple[bytes, View]]) -> None:
        """See `announce`."""
        self._awaited.subtract(keys)
        self._awaited += Counter()  # drops zeros

    def use(self, entry: Entry) -> None:
        """A session runs on a prefix. Call `leave` when it has ended."""
        entry.users += 1

    def leave(self, entry: Entry) -> None:
        """See `use`."""
        entry.users -= 1

    def keep(self, chain: Sequence[KeptPrefix], views: Sequence[View], videos: frozenset[bytes]) -> None:
        """Keep the prefixes of a prompt, each the parent of the next, as far as there is room.

        Where another session has kept the same meanwhile, that stays, and the others of this chain are not kept: their
        rows would hold a second copy.
        """
        parent: Entry | None = None
        for prefix, view in zip(chain, views, strict=True):
            entry = self._entries.get((prefix.key, view))
            if entry is None:
                if parent is not None:
                    parent.children += 1  # it must not be evicted for its child
                fits = self._make_room(prefix.nbytes)
                if parent is not None and not fits:
                    parent.children -= 1
                if not fits:
                    return
                entry = Entry(prefix, view, videos, parent)
                self._entries[prefix.key, view] = entry
                self._views.setdefault(prefix.key, []).append(view)
                self._count(prefix.nbytes, 1)
            elif entry.prefix is not prefix:
                return
            self._touch(entry)
            parent = entry

    def pin(self, videos: Iterable[bytes]) -> None:
        """Prefixes of these videos stay, whatever their age, in place of those of an earlier call."""
        self._pinned = frozenset(videos)

    def clear(self) -> None:
        """Drop everything, also what sessions run on, which lives as long as they do."""
        self._entries.clear()
        self._views.clear()
        self._pinned = frozenset()
        self._count(-self.report.nbytes, -self.report.count)

    def reported(self) -> Report:
        """Return the figures; the evictions are counted from 0 again."""
        self.changed = False
        report, self.report = self.report, Report(self.report.count, self.report.nbytes)
        return report

    def _touch(self, entry: Entry) -> None:
        one: Entry | None = entry
        while one is not None:
            if (one.prefix.key, one.view) in self._entries:
                self._entries.move_to_end((one.prefix.key, one.view))
            one = one.parent

    def _make_room(self, size: int) -> bool:
        """Evict until ``size`` more bytes fit; evict nothing where they cannot fit."""
        free = self.max_bytes - self.report.nbytes
        evicted: list[Entry] = []
        children = Counter[int]()
        while free < size:
            victim = next((one for one in self._entries.values() if self._evictable(one, evicted, children)), None)
            if victim is None:
                return False
            evicted.append(victim)
            free += victim.prefix.nbytes
            if victim.parent is not None:
                children[id(victim.parent)] += 1
        for victim in evicted:
            del self._entries[victim.prefix.key, victim.view]
            self._views[victim.prefix.key].remove(victim.view)
            if not self._views[victim.prefix.key]:
                del self._views[victim.prefix.key]
            if victim.parent is not None:
                victim.parent.children -= 1
            self._count(-victim.prefix.nbytes, -1)
        self.report.evicted += len(evicted)
        return True

    def _evictable(self, entry: Entry, evicted: Sequence[Entry], children: Counter[int]) -> bool:
        needed = entry.children > children[id(entry)]
        return not (needed or entry.users or entry in evicted or entry.videos & self._pinned)

    def _count(self, nbytes: int, count: int) -> None:
        self.report.nbytes += nbytes
        self.report.count += count
        self.changed = True
