"""The engine's end over ZeroMQ, for actors in processes of their own, here or on other hosts (``tcp://HOST:PORT``).

It is a ROUTER, so that it knows who speaks: a worker begins with `GREETING` and is given a channel; others that greet
wait until that one is gone. A worker that is dropped receives `FAREWELL`, with the reason.
"""

from __future__ import annotations

import asyncio
import errno
from collections import deque
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import zmq
from zmq.utils.monitor import recv_monitor_message

from pvlm.log import log
from pvlm.transports import MAILBOX_MESSAGES
from pvlm.transports.connections import Connections, require_descriptors
from pvlm.transports.curve import Authenticator, Keys
from pvlm.transports.link import ConnectionDamaged, Frames
from pvlm.transports.wire import WireChannel
from pvlm_protocols.codec import MAX_ARRAY_BYTES

GREETING = b"PVLZ\x01"
"""A worker's first message; and what the engine sends to find out whether a worker is still connected."""
FAREWELL = b"PVLZ\x00"
"""From the engine: nobody listens to this worker any more. A second frame says why."""
CUT_AFTER_S = 10.0
"""A connection to a host that has not been heard of for so long is given up."""
LAST_WORDS_MS = 500
FULL_PAUSE_S = 0.01
"""Before more is sent to a worker that has so much unread that nothing could be sent."""
MOST_WAITING = 16
"""Workers that may wait at a port, and messages that are kept of each."""
CONNECTIONS = zmq.EVENT_LISTENING | zmq.EVENT_ACCEPTED | zmq.EVENT_ACCEPT_FAILED | zmq.EVENT_DISCONNECTED
LOOKS_S = (0.0, 0.05, 0.5)
"""When to check whose connection was lost: ZeroMQ reports a loss before it has cleared the connection."""
FAILURES = zmq.EVENT_HANDSHAKE_FAILED_AUTH | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
REFUSED: dict[int, str] = {
    zmq.PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH: "it does not use keys as this engine does",
    zmq.PROTOCOL_ERROR_ZMTP_CRYPTOGRAPHIC: "it has not this engine's public key",
}
HUNG_UP = "it has hung up, or is no worker: does it use keys as this engine does?"


class ZmqServer:
    """A port that workers connect to. One of them has a channel, the others wait for their turn.

    The socket is read in the event loop's own callback: pyzmq's asyncio sockets need three turns of the loop and a
    future for a message.
    """

    def __init__(
        self,
        endpoint: str,
        keys: Keys | None = None,
        cut_after_s: float = CUT_AFTER_S,
        on_refused: Callable[[str], None] | None = None,
    ) -> None:
        """``endpoint``: ``tcp://127.0.0.1:*`` lets the system choose a port. ``keys``: let in who is authorized there,
        and nobody else. ``cut_after_s``: a connection to a host that has not been heard of for so long is given up.
        ``on_refused`` is told why a connection was turned away.

        Call it on the engine's event loop. Raises OSError if the endpoint cannot be bound, or a limit is reached.
        """
        self.refused = 0
        """Connections that were turned away."""
        self.last_refusal = ""
        self._on_refused = on_refused
        self._loop = asyncio.get_running_loop()
        self._authenticator: Authenticator | None = None
        self._channels: dict[bytes, ZmqChannel] = {}
        self._waiting: deque[ZmqChannel] = deque()
        """Channels of workers that nobody has asked for yet."""
        self._next: ZmqChannel | None = None
        require_descriptors()
        self._context = zmq.Context()
        try:
            self._socket: zmq.Socket[bytes] = self._context.socket(zmq.ROUTER)
            configure(self._socket, endpoint, linger_ms=0, cut_after_s=cut_after_s)
            self._socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
            if keys is not None:
                keys.protect_engine(self._socket)
                self._authenticator = Authenticator(self._context, keys)
            self._monitor = self._socket.get_monitor_socket(CONNECTIONS | FAILURES)
            self._socket.bind(endpoint)
            self._connections = Connections(next(value for _, value in monitored(self._monitor)))
        except BaseException as error:
            self._end()
            if isinstance(error, zmq.ZMQError):
                raise OSError(error.errno, error.strerror, endpoint) from None
            raise
        self.endpoint: str = self._socket.getsockopt_string(zmq.LAST_ENDPOINT)
        """Where the worker connects (with the port that ``*`` became)."""
        self._loop.add_reader(self._socket.fileno(), self._on_event)
        self._loop.add_reader(self._monitor.fileno(), self._on_monitor)
        self._on_monitor()  # its descriptor reports nothing before a first, empty read

    def channel(self, *, only: bool = False) -> ZmqChannel:
        """For the worker that has waited longest, or else the next that comes. At most one that has no worker yet.

        ``only``: there will be no other, and the server is closed with this one.
        """
        while self._waiting:
            if not (channel := self._waiting.popleft()).gone.is_set():
                return channel
        self._next = ZmqChannel(self, only)
        return self._next

    def send(self, peer: bytes, frames: Frames) -> bool:
        """False while the worker has too much unread. What is for a worker that is gone is lost, and all that is sent
        after `close`.
        """
        if self._socket.closed:
            return True
        try:
            self._socket.send_multipart([peer, *frames], zmq.NOBLOCK, copy=False)
        except zmq.Again:
            return False
        except zmq.ZMQError as error:
            if error.errno != errno.EHOSTUNREACH:
                raise
            self._gone(peer)
        self._look_again()
        return True

    def release(self, channel: ZmqChannel, reason: str | None = None) -> None:
        """The worker of a channel is not listened to any more; with a ``reason`` it is told so."""
        if self._next is channel:
            self._next = None
        if channel.peer is not None:
            self._channels.pop(channel.peer, None)
            self._forget(channel)
            if reason is not None:
                self._farewell(channel.peer, reason)

    def close(self) -> None:
        """What was sent last is delivered, if that does not take longer than `LAST_WORDS_MS`. May be called twice."""
        if not self._socket.closed:
            self._connections.close()
            self._loop.remove_reader(self._socket.fileno())
            self._loop.remove_reader(self._monitor.fileno())
            self._end()

    def _end(self) -> None:
        if self._authenticator is not None:
            self._authenticator.stop()
        self._context.destroy(linger=LAST_WORDS_MS)

    # ---- events ---------------------------------------------------------------------------------------------------

    def _on_event(self) -> None:
        for _ in range(MAILBOX_MESSAGES):  # then let others have the event loop
            if self._socket.closed:
                return
            try:
                received = self._socket.recv_multipart(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                break
            peer, *frames = (frame.bytes for frame in received)
            if (channel := self._channels.get(peer)) is None:
                self._from_outside(peer, frames, received[0])
            elif frames != [GREETING]:
                channel.arrived(frames)
                if channel in self._waiting and channel.unread > MOST_WAITING:
                    channel.dismiss(f"it has sent more than {MOST_WAITING} messages before its turn")
        self._look_again()

    def _look_again(self) -> None:
        """The descriptor reports an event only once, and any use of the socket may have taken it."""
        if _readable(self._socket):
            self._loop.call_soon(self._on_event)

    def _from_outside(self, peer: bytes, frames: list[bytes], first: zmq.Frame) -> None:
        """From a worker that has no channel."""
        if frames != [GREETING]:
            self._farewell(peer, "the engine has turned away from this connection")
            return
        if self._next is None and len(self._waiting) == MOST_WAITING:
            self._farewell(peer, f"{MOST_WAITING} workers wait for their turn already")
            return
        self._on_monitor()  # its connection was accepted before it greeted
        if not self._connections.greeted(int(first.get(zmq.SRCFD)), peer):
            self._expect_loss(peer)
        channel, self._next = self._next, None
        if channel is None:
            channel = ZmqChannel(self, only=False)
            self._waiting.append(channel)
            log.info("worker_waits", endpoint=self.endpoint, worker=self._name(first))
        self._channels[peer] = channel
        channel.assigned(peer, self._name(first))

    def _name(self, frame: zmq.Frame) -> str:
        address = str(frame.get("Peer-Address"))
        if self._authenticator is None:
            return address
        return f"{self._authenticator.name(str(frame.get('User-Id')))} ({address})"

    def _on_monitor(self) -> None:
        if self._socket.closed:
            return
        for event, value in islice(monitored(self._monitor), MAILBOX_MESSAGES):  # then let others have the event loop
            match event:
                case zmq.EVENT_ACCEPTED:
                    self._connections.accepted(value)
                case zmq.EVENT_ACCEPT_FAILED:
                    self._connections.not_accepted()
                case zmq.EVENT_DISCONNECTED:
                    if peer := self._connections.ended(value):
                        self._expect_loss(peer)
                case _:
                    self._count_refusal(event, value)
        if _readable(self._monitor):
            self._loop.call_soon(self._on_monitor)

    def _count_refusal(self, event: int, value: int) -> None:
        self.refused += 1
        self.last_refusal = REFUSED.get(value, HUNG_UP)
        if event == zmq.EVENT_HANDSHAKE_FAILED_AUTH and self._authenticator is not None:
            self.last_refusal = self._authenticator.reason()
        if self._on_refused is not None:
            self._on_refused(self.last_refusal)

    def _expect_loss(self, peer: bytes) -> None:
        for seconds in LOOKS_S:
            self._loop.call_later(seconds, self._look_for, peer)

    def _look_for(self, peer: bytes) -> None:
        self._on_event()  # its last words
        if peer in self._channels:
            self.send(peer, [GREETING])

    def _gone(self, peer: bytes) -> None:
        if (channel := self._channels.pop(peer, None)) is not None:
            self._forget(channel)
            channel.cut()

    def _forget(self, channel: ZmqChannel) -> None:
        if channel in self._waiting:
            self._waiting.remove(channel)

    def _farewell(self, peer: bytes, reason: str) -> None:
        if not self._socket.closed and not self.send(peer, [FAREWELL, reason.encode()]):
            self._loop.call_later(1.0, self._farewell, peer, reason)


class ZmqChannel(WireChannel):
    """See `pvlm.transports.Channel`; `ZmqServer.channel` makes it. What is posted before its worker comes waits."""

    def __init__(self, server: ZmqServer, only: bool) -> None:
        super().__init__(server.endpoint)
        self.peer: bytes | None = None
        """By which the server knows the worker; None until it has come."""
        self.worker = ""
        """Its address and the name of its key."""
        self._server = server
        self._only = only
        self._retry: asyncio.TimerHandle | None = None

    @property
    def unread(self) -> int:
        """Messages that have arrived and were not received."""
        return len(self._arrivals)

    def assigned(self, peer: bytes, worker: str) -> None:
        """Called by the server: a worker has come."""
        self.peer, self.worker = peer, worker
        self._send()

    def arrived(self, frames: list[bytes]) -> None:
        """Called by the server."""
        if not self._arrivals.closed and not self.gone.is_set():
            try:
                self._arrived(frames)
            except ConnectionDamaged as error:
                self.cut(str(error))

    def dismiss(self, reason: str) -> None:
        """Send the worker away, and tell it why. The channel may be closed already."""
        self._server.release(self, reason)

    def _send(self) -> None:
        while self._outgoing and self.peer is not None and self._retry is None:
            if self._server.send(self.peer, self._outgoing[0][1]):
                self._sent()
            else:
                self._retry = self._loop.call_later(FULL_PAUSE_S, self._send_again)

    def _send_again(self) -> None:
        self._retry = None
        self._send()

    def _close(self) -> None:
        if self._retry is not None:
            self._retry.cancel()
        self._server.release(self)
        if self._only:
            self._server.close()


def _readable(socket: zmq.Socket[bytes]) -> bool:
    if socket.closed:
        return False
    events = socket.getsockopt(zmq.EVENTS)
    assert isinstance(events, int)
    return bool(events & zmq.POLLIN)


def monitored(monitor: zmq.Socket[bytes]) -> Iterator[tuple[int, int]]:
    """The events that have happened to a monitored socket, and their values."""
    while True:
        try:
            message = recv_monitor_message(monitor, zmq.NOBLOCK)
        except zmq.Again:
            return
        yield int(message["event"]), int(message["value"])


def configure(socket: Any, endpoint: str, linger_ms: int, cut_after_s: float = CUT_AFTER_S) -> None:
    """What both ends have in common.

    Whether the other host is still there, TCP finds out (keep-alive, and a limit to how long what was sent may go
    unconfirmed), and not ZeroMQ's heartbeats: these queue after a message, and a long video over a slow network may
    take longer than it should take to notice a cut. A process that stands still on a host that does not, is a hang.
    """
    socket.setsockopt(zmq.LINGER, linger_ms)
    socket.setsockopt(zmq.SNDHWM, MAILBOX_MESSAGES)
    socket.setsockopt(zmq.RCVHWM, MAILBOX_MESSAGES)
    socket.setsockopt(zmq.MAXMSGSIZE, MAX_ARRAY_BYTES)  # of a frame; a peer that sends more is disconnected
    socket.setsockopt(zmq.IPV6, int("[" in endpoint))
    socket.setsockopt(zmq.TCP_KEEPALIVE, 1)
    socket.setsockopt(zmq.TCP_KEEPALIVE_IDLE, max(1, int(cut_after_s / 2)))
    socket.setsockopt(zmq.TCP_KEEPALIVE_INTVL, max(1, int(cut_after_s / 10)))
    socket.setsockopt(zmq.TCP_KEEPALIVE_CNT, 5)
    socket.setsockopt(zmq.TCP_MAXRT, int(cut_after_s * 1000))
