"""The transport that an endpoint names: ``ipc://`` a pair of Unix sockets, ``tcp://HOST:PORT`` ZeroMQ."""

from __future__ import annotations

from pvlm.transports.curve import Keys
from pvlm.transports.unix import SCHEME, UnixChannel, UnixMailbox
from pvlm.transports.zmq import ZmqChannel, ZmqServer
from pvlm.transports.zmq_mailbox import ZmqMailbox

SocketChannel = UnixChannel | ZmqChannel


def listen(endpoint: str) -> SocketChannel:
    """The engine's end, for one worker. Call it on the engine's event loop. Raises OSError if there can be none."""
    return UnixChannel() if endpoint == SCHEME else ZmqServer(endpoint).channel(only=True)


def connect(endpoint: str, keys: Keys | None = None) -> UnixMailbox | ZmqMailbox:
    """The actor's end; ``keys`` as for `ZmqMailbox`. Raises OSError if nobody listens there."""
    return UnixMailbox(endpoint) if endpoint.startswith(SCHEME) else ZmqMailbox(endpoint, keys)
