"""The actor's end over ZeroMQ; `pvlm.transports.zmq` is the engine's."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator, Sequence

import zmq

from pvlm.log import log
from pvlm.settings.endpoints import split_endpoint
from pvlm.transports import ChannelClosed
from pvlm.transports.curve import Keys
from pvlm.transports.link import Frames
from pvlm.transports.wire import WireMailbox
from pvlm.transports.zmq import FAREWELL, GREETING, configure, monitored

LAST_WORDS_MS = 500
"""How long a closing mailbox may take to deliver what was posted."""
CONNECT_TIMEOUT_S = 5.0
A_DAY_MS = 86_400_000
NO_ANSWER = "nobody listens there, or the network does not get that far"
NO_HANDSHAKE = (
    "who listens there has hung up: is it an engine that expects workers, does it use keys (--keys), and is the public "
    "key in authorized/ its own?"
)
NOT_AUTHORIZED = "the engine does not know this worker's key: copy its public key file into the engine's authorized/"


class ZmqMailbox(WireMailbox):
    """See `pvlm.transports.Mailbox`. It connects once: for another connection make another mailbox."""

    def __init__(self, endpoint: str, keys: Keys | None = None) -> None:
        """``keys``: encrypt, and talk to nobody but the engine that is authorized there.

        Raises OSError if there is no connection within `CONNECT_TIMEOUT_S`, with the reason; ConfigError where the keys
        lack the engine's.
        """
        super().__init__(endpoint)
        self._context = zmq.Context()
        self._socket: zmq.Socket[bytes] = self._context.socket(zmq.DEALER)
        self._connected = False
        configure(self._socket, endpoint, LAST_WORDS_MS)
        # What was said over one connection is not meant for another. To forbid another altogether (-1) would lose what
        # has come and was not read yet when the connection ends.
        self._socket.setsockopt(zmq.RECONNECT_IVL, A_DAY_MS)
        self._monitor = self._socket.get_monitor_socket()
        self._reading, self._writing = zmq.Poller(), zmq.Poller()
        for poller, flags in ((self._reading, zmq.POLLIN), (self._writing, zmq.POLLOUT)):
            poller.register(self._socket, flags)
            poller.register(self._monitor, zmq.POLLIN)
        try:
            if keys is not None:
                keys.protect_worker(self._socket)
            self._connect(endpoint)
        except BaseException:
            self._context.destroy(linger=0)
            raise
        self._write([[GREETING]])

    def _connect(self, endpoint: str) -> None:
        socket.getaddrinfo(*split_endpoint(endpoint))  # ZeroMQ says nothing of names that are none
        try:
            self._socket.connect(endpoint)
        except zmq.ZMQError as error:
            raise OSError(error.errno, error.strerror, endpoint) from None
        until_s = time.monotonic() + CONNECT_TIMEOUT_S
        while (left_s := until_s - time.monotonic()) > 0 and self._monitor.poll(int(left_s * 1000) + 1):
            for event, _ in monitored(self._monitor):
                match event:
                    case zmq.EVENT_HANDSHAKE_SUCCEEDED:
                        self._connected = True
                        return
                    case zmq.EVENT_HANDSHAKE_FAILED_AUTH:
                        raise ConnectionRefusedError(NOT_AUTHORIZED)
                    case zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL:
                        raise ConnectionRefusedError(NO_HANDSHAKE)
                    case zmq.EVENT_CLOSED:
                        raise ConnectionRefusedError(NO_ANSWER)
        raise TimeoutError(NO_ANSWER)

    def _waiting(self) -> Iterator[Frames]:
        while True:
            try:
                frames = self._socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            if frames[0] == FAREWELL:
                log.info("turned_away", reason=b" ".join(frames[1:]).decode(errors="replace"))
                self._connected = False
                raise ChannelClosed
            if frames != [GREETING]:
                yield frames

    def _receive(self, timeout_s: float | None) -> bool:
        return self._wait(self._reading, timeout_s)

    def _wait(self, poller: zmq.Poller, timeout_s: float | None) -> bool:
        """Whether the socket can be used within ``timeout_s``. Raises ChannelClosed when the connection is lost."""
        if not self._connected:
            timeout_s = 0
        ready = dict(poller.poll(None if timeout_s is None else int(timeout_s * 1000) + (timeout_s > 0)))
        if self._monitor in ready and any(event in _LOST for event, _ in monitored(self._monitor)):
            self._connected = False
        if self._socket not in ready and not self._connected:  # what came before is read first
            raise ChannelClosed
        return self._socket in ready

    def _write(self, messages: Sequence[Frames]) -> None:
        for frames in messages:
            while not self._sent(frames):
                self._wait(self._writing, None)

    def _sent(self, frames: Frames) -> bool:
        if not self._connected:
            raise ChannelClosed
        try:
            self._socket.send_multipart(frames, zmq.NOBLOCK, copy=False)
        except zmq.Again:
            return False
        return True

    def close(self) -> None:
        self._context.destroy(linger=LAST_WORDS_MS if self._connected else 0)


_LOST = (zmq.EVENT_DISCONNECTED, zmq.EVENT_CLOSED)
