"""Channel and mailbox over ZeroMQ, for an actor in a process of its own (``ipc://`` or ``tcp://``)."""

from __future__ import annotations

import asyncio
from typing import Any

import structlog
import zmq
import zmq.asyncio

from pvlm.transports import MAILBOX_MESSAGES, ChannelClosed, ChannelFull
from pvlm_protocols.codec import ProtocolError, decode_for_actor, decode_from_actor, encode
from pvlm_protocols.messages import FromActor, ToActor

LAST_WORDS_MS = 500
"""How long a closing mailbox may take to deliver what was posted."""

log = structlog.get_logger()


class ZmqChannel:
    """The engine's end; see `pvlm.transports.Channel`. It binds, the worker connects."""

    def __init__(self, endpoint: str) -> None:
        """``endpoint``: ``ipc://PATH`` or ``tcp://127.0.0.1:*``. Raises zmq.ZMQError if it cannot be bound."""
        self.dropped = 0
        self._context = zmq.asyncio.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._waiting = 0
        _configure(self._socket, linger_ms=0)
        try:
            self._socket.bind(endpoint)
        except zmq.ZMQError:
            self._context.destroy(linger=0)
            raise
        self.endpoint: str = self._socket.getsockopt_string(zmq.LAST_ENDPOINT)
        """Where the worker connects (with the port that ``*`` became)."""

    def post(self, message: ToActor) -> None:
        if self._socket.closed:
            raise ChannelClosed
        if self._waiting >= MAILBOX_MESSAGES:
            raise ChannelFull
        # pyzmq sends at once if it can, so order and latency are those of a plain socket; else the future stays open.
        sent: asyncio.Future[Any] = self._socket.send_multipart(encode(message), copy=False)  # type: ignore[assignment]
        if not sent.done():
            self._waiting += 1
            sent.add_done_callback(self._sent)

    def _sent(self, _: Any) -> None:
        self._waiting -= 1

    async def receive(self) -> FromActor:
        while True:
            if self._socket.closed:
                raise ChannelClosed
            try:
                frames = await self._socket.recv_multipart()
            except zmq.ZMQError:
                if self._socket.closed:
                    raise ChannelClosed from None
                raise
            except asyncio.CancelledError:
                # A socket that is closed cancels what waits on it, which is no cancellation of the task.
                task = asyncio.current_task()
                if self._socket.closed and task is not None and not task.cancelling():
                    raise ChannelClosed from None
                raise
            try:
                return decode_from_actor(frames)
            except ProtocolError as error:
                self.dropped += 1
                log.warning("message_dropped", endpoint=self.endpoint, reason=str(error))

    async def aclose(self) -> None:
        if not self._socket.closed:
            self._context.destroy(linger=0)


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
