"""Sockets that say what they like, to either end of a transport: as the next message of a link, or bare."""

from __future__ import annotations

import os
import socket
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import zmq

from pvlm.transports.framing import framed
from pvlm.transports.link import Link
from pvlm.transports.unix import SCHEME
from pvlm.transports.zmq import GREETING
from pvlm_protocols.codec import Buffer


class Stranger(ABC):
    def __init__(self) -> None:
        self.link = Link()

    @abstractmethod
    def connect(self, endpoint: str) -> None: ...

    @abstractmethod
    def bind(self, endpoint: str) -> str:
        """Returns where to connect to."""

    def say(self, frames: Sequence[Buffer]) -> None:
        """As the next message."""
        self.say_bare(self.link.send(frames))

    @abstractmethod
    def say_bare(self, frames: Sequence[Buffer]) -> None: ...

    @abstractmethod
    def close(self) -> None: ...


class UnixStranger(Stranger):
    def __init__(self) -> None:
        super().__init__()
        self._socket: socket.socket | None = None

    def connect(self, endpoint: str) -> None:
        self._socket = socket.socket(fileno=os.dup(int(endpoint.removeprefix(SCHEME))))

    def bind(self, endpoint: str) -> str:
        self._socket, other = socket.socketpair()
        return f"{endpoint}{other.detach()}"

    def say_bare(self, frames: Sequence[Buffer]) -> None:
        self.say_bytes(b"".join(framed(frames)))

    def say_bytes(self, data: bytes) -> None:
        assert self._socket is not None
        self._socket.sendall(data)

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()


class ZmqStranger(Stranger):
    def __init__(self) -> None:
        super().__init__()
        self._context = zmq.Context()
        self._socket: zmq.Socket[Any] = self._context.socket(zmq.DEALER)

    def connect(self, endpoint: str) -> None:
        self._socket.connect(endpoint)
        self._socket.send(GREETING)

    def bind(self, endpoint: str) -> str:
        self._socket.bind(endpoint)
        return self._socket.getsockopt_string(zmq.LAST_ENDPOINT)

    def say_bare(self, frames: Sequence[Buffer]) -> None:
        self._socket.send_multipart(frames)

    def close(self) -> None:
        self._context.destroy(linger=0)
