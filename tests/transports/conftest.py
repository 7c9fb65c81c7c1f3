"""The two ends of a connection, over each transport."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from pvlm.transports import Channel, Mailbox, inproc, sockets

Connect = Callable[[], tuple[Channel, Mailbox]]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(params=["ipc", "tcp"])
def endpoint(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return f"ipc://{tmp_path}/draft" if request.param == "ipc" else "tcp://127.0.0.1:*"


@pytest.fixture(params=["inproc", "ipc", "tcp"])
def connect(request: pytest.FixtureRequest, tmp_path: Path) -> Connect:
    """Makes the two connected ends; to be called on the event loop."""

    def make() -> tuple[Channel, Mailbox]:
        if request.param == "inproc":
            return inproc.connect()
        channel = sockets.listen(f"ipc://{tmp_path}/draft" if request.param == "ipc" else "tcp://127.0.0.1:*")
        return channel, sockets.connect(channel.endpoint)

    return make
