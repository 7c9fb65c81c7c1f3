"""Channel and mailbox over ZeroMQ, for an actor in a process of its own (``tcp://HOST:PORT``)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import zmq

from pvlm.transports import MAILBOX_MESSAGES
from pvlm.transports.wire import Frames, WireChannel, WireMailbox
from pvlm_protocols.codec import MAX_ARRAY_BYTES

LAST_WORDS_MS = 500
"""How long a closing mailbox may take to deliver what was posted."""


class ZmqChannel(WireChannel):
    """The engine's end; see `pvlm.transports.Channel`. It binds, the worker connects.

    The socket is read in the event loop's own callback: pyzmq's asyncio sockets need three turns of the loop and a
    future for a message.
    """

    def __init__(self, endpoint: str) -> None:
        """``endpoint``: ``tcp://127.0.0.1:*`` lets the system choose a port. Raises OSError if it cannot be bound."""
        super().__init__(endpoint)
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

    def _close(self) -> None:
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
            self._arrived(frames)
        self._look_again()

    def _queue(self, frames: Frames) -> None:
        self._outgoing.append(frames)
        self._send()
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


class ZmqMailbox(WireMailbox):
    """The actor's end; see `pvlm.transports.Mailbox`."""

    def __init__(self, endpoint: str) -> None:
        super().__init__(endpoint)
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        _configure(self._socket, linger_ms=LAST_WORDS_MS)
        self._socket.connect(endpoint)

    def _waiting(self) -> Iterator[Frames]:
        with suppress(zmq.Again):
            while True:
                yield self._socket.recv_multipart(zmq.NOBLOCK)

    def _receive(self, timeout_s: float | None) -> bool:
        return bool(self._socket.poll(None if timeout_s is None else int(timeout_s * 1000) + (timeout_s > 0)))

    def _write(self, frames: Frames) -> None:
        self._socket.send_multipart(frames, copy=False)

    def close(self) -> None:
        self._context.destroy(linger=LAST_WORDS_MS)


def _configure(socket: Any, linger_ms: int) -> None:
    socket.setsockopt(zmq.LINGER, linger_ms)
    socket.setsockopt(zmq.SNDHWM, MAILBOX_MESSAGES)
    socket.setsockopt(zmq.RCVHWM, MAILBOX_MESSAGES)
    socket.setsockopt(zmq.MAXMSGSIZE, MAX_ARRAY_BYTES)  # of a frame; a peer that sends more is disconnected
