"""Channel and mailbox over a Unix socket, for an actor in a process of its own on this machine (``ipc://PATH``).

ZeroMQ would do, but it hands each message through a thread of its own at either end. That costs two more wake-ups of an
idle core for each hop, and there are two hops between a drafted window and its verification.
"""

from __future__ import annotations

import os
import socket
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from pvlm.transports import ChannelClosed
from pvlm.transports.framing import FrameReader, framed
from pvlm.transports.link import ConnectionDamaged, Frames
from pvlm.transports.wire import WireChannel, WireMailbox

SCHEME = "ipc://"
READ_BYTES = 256 * 1024


class UnixChannel(WireChannel):
    """The engine's end; see `pvlm.transports.Channel`. It listens, and one worker connects."""

    def __init__(self, endpoint: str) -> None:
        """``endpoint``: ``ipc://PATH``. Raises OSError if the socket cannot be made."""
        super().__init__(endpoint)
        self._reader = FrameReader()
        self._connection: socket.socket | None = None
        self._listener: socket.socket | None = socket.socket(socket.AF_UNIX)
        try:
            self._listener.setblocking(False)
            self._listener.bind(endpoint.removeprefix(SCHEME))
            self._listener.listen(1)
        except OSError:
            self._listener.close()
            raise
        self._loop.add_reader(self._listener, self._on_connection)

    def cut(self, damage: str = "") -> None:
        super().cut(damage)
        if self._connection is not None:
            self._loop.remove_reader(self._connection)
            self._loop.remove_writer(self._connection)
            self._connection.close()
            self._connection = None

    def _close(self) -> None:
        self._stop_listening()
        self.cut()

    def _on_connection(self) -> None:
        assert self._listener is not None
        try:
            connection, _ = self._listener.accept()
        except BlockingIOError:
            return
        self._stop_listening()
        connection.setblocking(False)
        self._connection = connection
        self._loop.add_reader(connection, self._on_readable)
        self._send()

    def _on_readable(self) -> None:
        assert self._connection is not None
        try:
            data = self._connection.recv(READ_BYTES)
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
        if self._connection is None:
            return
        try:
            while self._outgoing:
                _, parts = self._outgoing[0]
                sent = self._connection.sendmsg(parts)
                while parts and sent >= parts[0].nbytes:
                    sent -= parts.pop(0).nbytes
                if parts:
                    parts[0] = parts[0][sent:]
                else:
                    self._sent()
        except BlockingIOError:
            self._loop.add_writer(self._connection, self._on_writable)
        except OSError:
            self.cut()

    def _on_writable(self) -> None:
        assert self._connection is not None
        self._loop.remove_writer(self._connection)
        self._send()

    def _stop_listening(self) -> None:
        if self._listener is not None:
            self._loop.remove_reader(self._listener)
            self._listener.close()
            self._listener = None
            with suppress(OSError):
                os.unlink(self.endpoint.removeprefix(SCHEME))


class UnixMailbox(WireMailbox):
    """The actor's end; see `pvlm.transports.Mailbox`."""

    def __init__(self, endpoint: str) -> None:
        """Raises OSError if nobody listens there."""
        super().__init__(endpoint)
        self._reader = FrameReader()
        self._read: deque[list[bytes]] = deque()
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(endpoint.removeprefix(SCHEME))

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

    def _write(self, frames: Frames) -> None:
        try:
            self._socket.settimeout(None)
            for part in framed(frames):
                self._socket.sendall(part)
        except OSError:
            raise ChannelClosed from None

    def close(self) -> None:
        self._socket.close()
