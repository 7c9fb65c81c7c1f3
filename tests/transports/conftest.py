"""The two ends of a connection, over each transport."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

from pvlm.transports import Channel, Mailbox, inproc, sockets
from pvlm.transports.sockets import SocketChannel
from pvlm.transports.unix import SCHEME
from pvlm.workers.launch import LISTEN

Connect = Callable[[], tuple[Channel, Mailbox]]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(params=LISTEN)
def endpoint(request: pytest.FixtureRequest) -> str:
    return LISTEN[request.param]


def connected(channel: SocketChannel) -> Mailbox:
    """The actor's end in this process."""
    if not channel.descriptors:
        return sockets.connect(channel.endpoint)
    mailbox = sockets.connect(f"{SCHEME}{os.dup(channel.descriptors[0])}")
    channel.handed_over()
    return mailbox


@pytest.fixture(params=["inproc", "ipc", "tcp"])
def connect(request: pytest.FixtureRequest) -> Connect:
    """Makes the two connected ends; to be called on the event loop."""

    def make() -> tuple[Channel, Mailbox]:
        if request.param == "inproc":
            return inproc.connect()
        channel = sockets.listen(LISTEN[request.param])
        return channel, connected(channel)

    return make
