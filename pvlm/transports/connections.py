"""The connections of a port: bounded, so that strangers leave descriptors and time for answers.

ZeroMQ accepts whatever comes, in a thread of its own. Without a descriptor left it would try again without a pause.
"""

from __future__ import annotations

import os
import resource
import socket
from contextlib import suppress

MOST_CONNECTIONS = 64
"""At one port; never more than a quarter of the descriptors that this process may have."""
SPARE = 4
NEEDED = 20
"""Descriptors for a port and its first connections."""


def require_descriptors() -> None:
    """Raise OSError where too few are left: ZeroMQ would end this process."""
    taken: list[int] = []
    try:
        while len(taken) < NEEDED:
            taken.append(os.open(os.devnull, os.O_RDONLY))
    finally:
        for one in taken:
            os.close(one)


class Connections:
    """What ZeroMQ has accepted and not yet closed, by descriptor. Its monitor reports both."""

    def __init__(self, listener: int) -> None:
        """``listener``: the descriptor on which ZeroMQ listens."""
        self._listener = socket.socket(fileno=os.dup(listener))
        self._listener.setblocking(False)
        self._spare: list[int] = []
        self._most = min(MOST_CONNECTIONS, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4)
        self._peers: dict[int, bytes] = {}
        self._take_spare()

    def accepted(self, descriptor: int) -> None:
        """Hang up on the oldest stranger where there are too many connections, or where this one took a descriptor that
        was to be spare: ZeroMQ tries again without a pause, and may be faster than `not_accepted`.
        """
        self._peers.pop(descriptor, None)
        self._peers[descriptor] = b""
        if len(self._peers) > self._most or not self._take_spare():
            self.hang_up(next((one for one, peer in self._peers.items() if not peer), descriptor))

    def greeted(self, descriptor: int, peer: bytes) -> bool:
        """This one is a worker's. Returns False if it has ended already."""
        if descriptor not in self._peers:
            return False
        self._peers[descriptor] = peer
        return True

    def ended(self, descriptor: int) -> bytes:
        """Return whose connection it was; empty for a stranger's."""
        self._take_spare()
        return self._peers.pop(descriptor, b"")

    def hang_up(self, descriptor: int) -> None:
        """ZeroMQ then closes it."""
        self._peers.pop(descriptor, None)
        with suppress(OSError):
            connection = socket.socket(fileno=descriptor)  # a copy would need another descriptor
            try:
                # the number may stand for something else already
                if connection.getsockname()[:2] == self._listener.getsockname()[:2]:
                    connection.shutdown(socket.SHUT_RDWR)
            finally:
                connection.detach()

    def not_accepted(self) -> None:
        """There was no descriptor left: take those who wait by spare ones, and close them."""
        for spare in self._spare:
            os.close(spare)
        self._spare.clear()
        with suppress(OSError):
            while True:
                self._listener.accept()[0].close()
        self._take_spare()

    def close(self) -> None:
        self._listener.close()
        for spare in self._spare:
            os.close(spare)
        self._spare.clear()

    def _take_spare(self) -> bool:
        """Hold `SPARE` descriptors, if there are so many; return whether there are."""
        with suppress(OSError):
            while len(self._spare) < SPARE:
                self._spare.append(os.open(os.devnull, os.O_RDONLY))
        return len(self._spare) == SPARE
