"""What only sockets can suffer: bytes that are no message, endpoints that cannot be had, and processes that end."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import pytest
import zmq
from anyio.to_thread import run_sync

from pvlm.transports.zmq import ZmqChannel, ZmqMailbox
from pvlm_protocols.codec import encode
from pvlm_protocols.messages import Closed, DraftWindow, Ping, Pong, Stop
from tests.protocols.samples import plain

ROOT = Path(__file__).parents[2]

MALFORMED: list[list[bytes]] = [
    [b""],
    [b"hello"],
    [b"PVLM\x63\x80"],
    [b"PVLM\x01"],
    [b"PVLM\x01\x81\xa4type\xa5Other"],
    [b"PVLM\x01\x81\xa4\xff\xff\xff\xff\xa4Ping"],  # no UTF-8
    [b"PVLM\x01\x82\xa4type\xa4Ping\xa5nonce\xa1x"],
    [bytes(frame) for frame in encode(Ping(nonce=1))] + [b""] * 9,
    [b"PVLM\x01" + bytes(2 * 1024 * 1024)],
]


@pytest.fixture
def stranger() -> Iterator[zmq.Socket[Any]]:
    """A socket that says what it likes."""
    context = zmq.Context()
    yield context.socket(zmq.DEALER)
    context.destroy(linger=0)


@pytest.mark.anyio
async def test_a_channel_drops_and_counts_what_is_no_message(endpoint: str, stranger: zmq.Socket[Any]) -> None:
    channel = ZmqChannel(endpoint)
    try:
        stranger.connect(channel.endpoint)
        for frames in MALFORMED:
            stranger.send_multipart(frames)
        stranger.send_multipart(encode(Stop()))  # a message, but not one for the engine
        stranger.send_multipart(encode(Pong(nonce=4, role="draft", progress=0)))
        with anyio.fail_after(20):
            assert await channel.receive() == Pong(nonce=4, role="draft", progress=0)
        assert channel.dropped == len(MALFORMED) + 1
    finally:
        await channel.aclose()


def test_a_mailbox_drops_and_counts_what_is_no_message(endpoint: str, stranger: zmq.Socket[Any]) -> None:
    stranger.bind(endpoint)
    mailbox = ZmqMailbox(stranger.getsockopt_string(zmq.LAST_ENDPOINT))
    try:
        for frames in MALFORMED:
            stranger.send_multipart(frames)
        stranger.send_multipart(encode(Pong(nonce=4, role="draft", progress=0)))  # not one for an actor
        stranger.send_multipart(encode(Ping(nonce=4)))
        assert mailbox.take(20) == Ping(nonce=4)
        assert mailbox.dropped == len(MALFORMED) + 1
    finally:
        mailbox.close()


@pytest.mark.anyio
async def test_an_endpoint_that_cannot_be_bound_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(zmq.ZMQError):
        ZmqChannel(f"ipc://{tmp_path}/no/such/directory/draft")


@pytest.mark.anyio
async def test_a_port_is_chosen_by_the_system() -> None:
    first, second = ZmqChannel("tcp://127.0.0.1:*"), ZmqChannel("tcp://127.0.0.1:*")
    try:
        assert first.endpoint.startswith("tcp://127.0.0.1:")
        assert first.endpoint != second.endpoint
    finally:
        await first.aclose()
        await second.aclose()


@pytest.mark.anyio
async def test_two_processes_talk_over_a_real_socket(endpoint: str) -> None:
    """Short messages in order, arrays as frames, and the last words of a process that ends."""
    channel = ZmqChannel(endpoint)
    command = [sys.executable, "-m", "tests.transports.echo_actor", channel.endpoint]
    process = subprocess.Popen(command, cwd=ROOT)  # noqa: ASYNC220 - starting it blocks for a moment only
    try:
        with anyio.fail_after(60):
            for nonce in range(200):
                channel.post(Ping(nonce=nonce))
            for nonce in range(200):
                assert await channel.receive() == Pong(nonce=nonce, role="draft", progress=process.pid)
            probs = np.linspace(0, 1, 300_000, dtype=np.float32).reshape(3, -1)
            window = DraftWindow(session=1, epoch=0, start=0, tokens=(1, 2, 3), proposal_probs=probs)
            channel.post(window)
            assert plain(await channel.receive()) == plain(window)
            channel.post(Stop())
            assert await channel.receive() == Closed(session=201, role="draft")
            assert await run_sync(process.wait, 20) == 0
    finally:
        process.kill()
        process.wait()
        await channel.aclose()
