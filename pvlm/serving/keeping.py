"""Videos that callers named by a ``uuid``, kept for their next questions."""

from __future__ import annotations

from collections import OrderedDict

Name = tuple[str, str, str]
"""Who brought it (the API key), the caller's ``cache_salt``, and the ``uuid``."""


class KeptMedia:
    """Bytes by name, bounded in all; what was used least recently goes first.

    A name holds the key of the caller, so nobody reaches another caller's video by guessing its ``uuid``.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._kept: OrderedDict[Name, bytes] = OrderedDict()
        self._bytes = 0

    def keep(self, name: Name, content: bytes) -> None:
        """Keep a video in place of what had this name, unless it is larger than all that may be kept."""
        self._bytes -= len(self._kept.pop(name, b""))
        if len(content) > self._max_bytes:
            return
        self._kept[name] = content
        self._bytes += len(content)
        while self._bytes > self._max_bytes:
            _, dropped = self._kept.popitem(last=False)
            self._bytes -= len(dropped)

    def find(self, name: Name) -> bytes | None:
        """The video of this name; None if it is not kept, or not any more."""
        if name in self._kept:
            self._kept.move_to_end(name)
        return self._kept.get(name)
