"""Channel and mailbox over a pair of connected Unix sockets, for an actor in a process of its own on this machine.

The worker inherits its end as a descriptor (``ipc://DESCRIPTOR``). So there is no file to clean up, and nobody else can
connect.

ZeroMQ would do, but it hands each message through a thread of its own at either end. That costs two more wake-ups of an
idle core for each hop, and there are two hops between a drafted window and its verification.
"""

from __future__ import annotations

import socket
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

from pvlm.transports import ChannelClosed
from pvlm.transports.framing import FrameReader, framed
from pvlm.transports.link import ConnectionDamaged, Frames
from pvlm.transports.wire import WireChannel, WireMailbox

SCHEME = "ipc://"
READ_BYTES = 256 * 1024


class UnixChannel(WireChannel):
    """The engine's end; see `pvlm.transports.Channel`."""

    def __init__(self) -> None:
        """Raises OSError if there are no descriptors left."""
        self._socket, self._others_end = socket.socketpair()
        super().__init__(f"{SCHEME}{self._others_end.fileno()}")
        self.descriptors = (self._others_end.fileno(),)
        self._reader = FrameReader()
        self._socket.setblocking(False)
        self._loop.add_reader(self._socket, self._on_readable)

    def handed_over(self) -> None:
        """Close the worker's end here, so that its loss is noticed."""
        super().handed_over()
        self._others_end.close()

    def cut(self, damage: str = "") -> None:
        super().cut(damage)
        if self._socket.fileno() != -1:
            self._loop.remove_reader(self._socket)
            self._loop.remove_writer(self._socket)
            self._socket.close()

    def _close(self) -> None:
        self.handed_over()
        self.cut()

    def _on_readable(self) -> None:
        try:
            data = self._socket.recv(READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:  # the worker has ended, or has found damage itself
            self.cut()
            return
        try:
            for frames in self._reader.feed(data):
                self._arrived(frames)
        except ConnectionDamaged as error:
            self.cut(str(error))

    def _parts(self, frames: Frames) -> list[Any]:
        return [memoryview(part) for part in framed(frames)]

    def _send(self) -> None:
        try:
            while self._outgoing:
                _, parts = self._outgoing[0]
                sent = self._socket.sendmsg(parts)
                while parts and sent >= parts[0].nbytes:
                    sent -= parts.pop(0).nbytes
                if parts:
                    parts[0] = parts[0][sent:]
                else:
                    self._sent()
        except BlockingIOError:
            self._loop.add_writer(self._socket, self._on_writable)
        except OSError:
            self.cut()

    def _on_writable(self) -> None:
        self._loop.remove_writer(self._socket)
        self._send()


class UnixMailbox(WireMailbox):
    """The actor's end; see `pvlm.transports.Mailbox`."""

    def __init__(self, endpoint: str) -> None:
        """Take over the descriptor that the endpoint names. Raises OSError if it is no socket."""
        super().__init__(endpoint)
        self._reader = FrameReader()
        self._read: deque[list[bytes]] = deque()
        self._socket = socket.socket(fileno=int(endpoint.removeprefix(SCHEME)))
        self._socket.set_inheritable(False)  # else a child of the worker would keep the connection

    def _waiting(self) -> Iterator[Frames]:
        while self._read:
            yield self._read.popleft()

    def _receive(self, timeout_s: float | None) -> bool:
        try:
            self._socket.settimeout(timeout_s)
            data = self._socket.recv(READ_BYTES)
        except (BlockingIOError, TimeoutError):
            return False
        except OSError:
            raise ChannelClosed from None
        if not data:
            raise ChannelClosed
        self._read.extend(self._reader.feed(data))
        return True

    def _write(self, messages: Sequence[Frames]) -> None:
        """Small parts go together, so that the engine is not woken by the first of them, maybe on this core."""
        parts = [part for frames in messages for part in framed(frames)]
        if sum(memoryview(part).nbytes for part in parts) <= READ_BYTES:
            parts = [b"".join(parts)]
        try:
            self._socket.settimeout(None)
            for part in parts:
                self._socket.sendall(part)
        except OSError:
            raise ChannelClosed from None

    def close(self) -> None:
        self._socket.close()
