"""Sockets that say what they like, to either end of a transport."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from typing import Any, Protocol

import zmq

from pvlm.transports.framing import framed
from pvlm_protocols.codec import Buffer


class Stranger(Protocol):
    def connect(self, endpoint: str) -> None: ...

    def bind(self, endpoint: str) -> str:
        """Returns where to connect to."""
        ...

    def say(self, frames: Sequence[Buffer]) -> None: ...

    def close(self) -> None: ...


class UnixStranger:
    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._connection: socket.socket | None = None

    def connect(self, endpoint: str) -> None:
        self._socket.connect(endpoint.removeprefix("ipc://"))
        self._connection = self._socket

    def bind(self, endpoint: str) -> str:
        self._socket.bind(endpoint.removeprefix("ipc://"))
        self._socket.listen()
        return endpoint

    def say(self, frames: Sequence[Buffer]) -> None:
        self.say_bytes(b"".join(framed(frames)))

    def say_bytes(self, data: bytes) -> None:
        if self._connection is None:
            self._connection, _ = self._socket.accept()
        self._connection.sendall(data)

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
        self._socket.close()


class ZmqStranger:
    def __init__(self) -> None:
        self._context = zmq.Context()
        self._socket: zmq.Socket[Any] = self._context.socket(zmq.DEALER)

    def connect(self, endpoint: str) -> None:
        self._socket.connect(endpoint)

    def bind(self, endpoint: str) -> str:
        self._socket.bind(endpoint)
        return self._socket.getsockopt_string(zmq.LAST_ENDPOINT)

    def say(self, frames: Sequence[Buffer]) -> None:
        self._socket.send_multipart(frames)

    def close(self) -> None:
        self._context.destroy(linger=0)
