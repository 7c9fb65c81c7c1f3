"""The transport that an endpoint names: ``ipc://PATH`` a Unix socket, ``tcp://HOST:PORT`` ZeroMQ."""

from __future__ import annotations

from pvlm.transports.unix import SCHEME, UnixChannel, UnixMailbox
from pvlm.transports.zmq import ZmqChannel, ZmqMailbox

SocketChannel = UnixChannel | ZmqChannel


def listen(endpoint: str) -> SocketChannel:
    """The engine's end. Call it on the engine's event loop. Raises OSError if it cannot be bound."""
    return UnixChannel(endpoint) if endpoint.startswith(SCHEME) else ZmqChannel(endpoint)


def connect(endpoint: str) -> UnixMailbox | ZmqMailbox:
    """The actor's end. Raises OSError if nobody listens there (over ``tcp`` it waits instead)."""
    return UnixMailbox(endpoint) if endpoint.startswith(SCHEME) else ZmqMailbox(endpoint)
