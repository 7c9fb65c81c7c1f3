"""Channel and mailbox over ZeroMQ, for an actor in a process of its own (``tcp://HOST:PORT``)."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import Any

import structlog
import zmq

from pvlm.transports import MAILBOX_MESSAGES, ChannelClosed, ChannelFull
from pvlm.transports.arrivals import Arrivals
from pvlm_protocols.codec import ProtocolError, decode_for_actor, decode_from_actor, encode
from pvlm_protocols.messages import FromActor, ToActor

LAST_WORDS_MS = 500
"""How long a closing mailbox may take to deliver what was posted."""

log = structlog.get_logger()


class ZmqChannel:
    """The engine's end; see `pvlm.transports.Channel`. It binds, the worker connects.

    The socket is read in the event loop's own callback: pyzmq's asyncio sockets need three turns of the loop and a
    future for a message.
    """

    def __init__(self, endpoint: str) -> None:
        """``endpoint``: ``tcp://127.0.0.1:*`` lets the system choose a port. Raises OSError if it cannot be bound."""
        self.dropped = 0
        self._loop = asyncio.get_running_loop()
        self._arrivals = Arrivals(self._loop)
        self._outgoing: deque[Sequence[Any]] = deque()
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        _configure(self._socket, linger_ms=0)
        try:
            self._socket.bind(endpoint)
        except zmq.ZMQError as error:
            self._context.destroy(linger=0)
            raise OSError(error.errno, error.strerror, endpoint) from None
        self.endpoint: str = self._socket.getsockopt_string(zmq.LAST_ENDPOINT)
        """Where the worker connects (with the port that ``*`` became)."""
        self._loop.add_reader(self._socket.fileno(), self._on_event)

    def post(self, message: ToActor) -> None:
        if self._arrivals.closed:
            raise ChannelClosed
        if len(self._outgoing) >= MAILBOX_MESSAGES:
            raise ChannelFull
        self._outgoing.append(encode(message))
        self._send()
        self._look_again()

    async def receive(self) -> FromActor:
        return await self._arrivals.get()

    async def aclose(self) -> None:
        if not self._arrivals.closed:
            self._arrivals.close()
            self._loop.remove_reader(self._socket.fileno())
            self._context.destroy(linger=0)

    def _on_event(self) -> None:
        if self._arrivals.closed:
            return
        self._send()
        for _ in range(MAILBOX_MESSAGES):  # then let others have the event loop
            try:
                frames = self._socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                break
            try:
                self._arrivals.put(decode_from_actor(frames))
            except ProtocolError as error:
                self.dropped += 1
                log.warning("message_dropped", endpoint=self.endpoint, reason=str(error))
        self._look_again()

    def _send(self) -> None:
        """What can be sent now; the rest waits, for a worker that has not connected yet or does not read."""
        while self._outgoing:
            try:
                self._socket.send_multipart(self._outgoing[0], zmq.NOBLOCK, copy=False)
            except zmq.Again:
                return
            self._outgoing.popleft()

    def _look_again(self) -> None:
        """The descriptor tells of an event once only, and any use of the socket may have taken it."""
        events = self._socket.getsockopt(zmq.EVENTS)
        assert isinstance(events, int)
        if events & zmq.POLLIN or (self._outgoing and events & zmq.POLLOUT):
            self._loop.call_soon(self._on_event)


class ZmqMailbox:
    """The actor's end; see `pvlm.transports.Mailbox`."""

    def __init__(self, endpoint: str) -> None:
        self.dropped = 0
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        _configure(self._socket, linger_ms=LAST_WORDS_MS)
        self._socket.connect(endpoint)

    def take(self, timeout_s: float | None = None) -> ToActor | None:
        while True:
            if timeout_s != 0 and not self._socket.poll(None if timeout_s is None else int(timeout_s * 1000) + 1):
                return None
            try:
                frames = self._socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return None
            try:
                return decode_for_actor(frames)
            except ProtocolError as error:
                self.dropped += 1
                log.warning("message_dropped", reason=str(error))

    def post(self, message: FromActor) -> None:
        self._socket.send_multipart(encode(message), copy=False)

    def close(self) -> None:
        self._context.destroy(linger=LAST_WORDS_MS)


def _configure(socket: Any, linger_ms: int) -> None:
    socket.setsockopt(zmq.LINGER, linger_ms)
    socket.setsockopt(zmq.SNDHWM, MAILBOX_MESSAGES)
    socket.setsockopt(zmq.RCVHWM, MAILBOX_MESSAGES)
