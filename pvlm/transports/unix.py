"""Channel and mailbox over a Unix socket, for an actor in a process of its own on this machine (``ipc://PATH``).

ZeroMQ would do, but it hands each message through a thread of its own at either end: two more wake-ups of an idle core
for a hop, and there are two hops between a drafted window and its verification.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections import deque
from contextlib import suppress

import structlog

from pvlm.transports import MAILBOX_MESSAGES, ChannelClosed, ChannelFull
from pvlm.transports.arrivals import Arrivals
from pvlm.transports.framing import FrameReader, framed
from pvlm_protocols.codec import ProtocolError, decode_for_actor, decode_from_actor, encode
from pvlm_protocols.messages import FromActor, ToActor

SCHEME = "ipc://"
READ_BYTES = 256 * 1024

log = structlog.get_logger()


class UnixChannel:
    """The engine's end; see `pvlm.transports.Channel`. It listens, one worker connects."""

    def __init__(self, endpoint: str) -> None:
        """``endpoint``: ``ipc://PATH``. Raises OSError if there can be no socket."""
        self.dropped = 0
        self.endpoint = endpoint
        self._loop = asyncio.get_running_loop()
        self._arrivals = Arrivals(self._loop)
        self._outgoing: deque[list[memoryview]] = deque()
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

    def post(self, message: ToActor) -> None:
        if self._arrivals.closed:
            raise ChannelClosed
        if len(self._outgoing) >= MAILBOX_MESSAGES:
            raise ChannelFull
        waiting = bool(self._outgoing)
        self._outgoing.append([memoryview(part) for part in framed(encode(message))])
        if not waiting:
            self._send()

    async def receive(self) -> FromActor:
        return await self._arrivals.get()

    async def aclose(self) -> None:
        if not self._arrivals.closed:
            self._arrivals.close()
            self._stop_listening()
            self._disconnect()

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
        if not data:  # the worker is gone, which its host notices
            self._disconnect()
            return
        try:
            for frames in self._reader.feed(data):
                try:
                    self._arrivals.put(decode_from_actor(frames))
                except ProtocolError as error:
                    self._drop(error)
        except ProtocolError as error:
            self._drop(error)
            self._disconnect()

    def _drop(self, error: ProtocolError) -> None:
        self.dropped += 1
        log.warning("message_dropped", endpoint=self.endpoint, reason=str(error))

    def _send(self) -> None:
        """What can be sent now; the rest waits, for a worker that has not connected yet or does not read."""
        if self._connection is None:
            return
        try:
            while self._outgoing:
                parts = self._outgoing[0]
                sent = self._connection.sendmsg(parts)
                while parts and sent >= parts[0].nbytes:
                    sent -= parts.pop(0).nbytes
                if parts:
                    parts[0] = parts[0][sent:]
                else:
                    self._outgoing.popleft()
        except BlockingIOError:
            self._loop.add_writer(self._connection, self._send)
        except OSError:
            self._disconnect()
        else:
            self._loop.remove_writer(self._connection)

    def _stop_listening(self) -> None:
        if self._listener is not None:
            self._loop.remove_reader(self._listener)
            self._listener.close()
            self._listener = None
            with suppress(OSError):
                os.unlink(self.endpoint.removeprefix(SCHEME))

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._loop.remove_reader(self._connection)
            self._loop.remove_writer(self._connection)
            self._connection.close()
            self._connection = None


class UnixMailbox:
    """The actor's end; see `pvlm.transports.Mailbox`."""

    def __init__(self, endpoint: str) -> None:
        """Raises OSError if nobody listens there."""
        self.dropped = 0
        self._reader = FrameReader()
        self._waiting: deque[list[bytes]] = deque()
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(endpoint.removeprefix(SCHEME))

    def take(self, timeout_s: float | None = None) -> ToActor | None:
        while True:
            while self._waiting:
                try:
                    return decode_for_actor(self._waiting.popleft())
                except ProtocolError as error:
                    self._drop(error)
            if not self._receive(timeout_s):
                return None

    def _receive(self, timeout_s: float | None) -> bool:
        """Whether something came within ``timeout_s``. Raises ChannelClosed."""
        try:
            self._socket.settimeout(timeout_s)
            data = self._socket.recv(READ_BYTES)
        except (BlockingIOError, TimeoutError):
            return False
        except OSError:
            raise ChannelClosed from None
        if not data:
            raise ChannelClosed
        try:
            self._waiting.extend(self._reader.feed(data))
        except ProtocolError as error:
            self._drop(error)
            self._socket.close()
        return True

    def _drop(self, error: ProtocolError) -> None:
        self.dropped += 1
        log.warning("message_dropped", reason=str(error))

    def post(self, message: FromActor) -> None:
        try:
            self._socket.settimeout(None)
            for part in framed(encode(message)):
                self._socket.sendall(part)
        except OSError:
            raise ChannelClosed from None

    def close(self) -> None:
        self._socket.close()
