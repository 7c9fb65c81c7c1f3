"""What only sockets can suffer: bytes that are no message, lost connections, bad endpoints, and processes that end."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import pytest
from anyio.to_thread import run_sync

from pvlm.transports import ChannelClosed, ChannelFull, Mailbox
from pvlm.transports.sockets import SocketChannel, connect, listen
from pvlm.transports.unix import SCHEME
from pvlm_protocols.codec import Buffer, ProtocolError, encode
from pvlm_protocols.messages import Closed, DraftWindow, Ping, Pong, PruneMask, Stop
from tests.protocols.samples import plain
from tests.transports.conftest import connected
from tests.transports.echo_actor import echo
from tests.transports.strangers import Stranger, UnixStranger, ZmqStranger

ROOT = Path(__file__).parents[2]

MALFORMED: list[list[bytes]] = [
    [b""],
    [b"hello"],
    [b"PVLM\x63\x80"],
    [b"PVLM\x05"],
    [b"PVLM\x05\x81\xa4type\xa5Other"],
    [b"PVLM\x05\x81\xa4\xff\xff\xff\xff\xa4Ping"],  # no UTF-8
    [b"PVLM\x05\x82\xa4type\xa4Ping\xa5nonce\xa1x"],
    [b"PVLM\x05" + bytes(1024 * 1024 + 1)],
]
DAMAGED: list[list[bytes]] = [
    [b"hello"],
    [b"PVLK"],
    [b"PVLK\x01" + bytes(20)],
    [b"PVLM\x05\x81\xa4type\xa4Stop"],  # without what a link puts around it
]
NOT_FRAMED = [
    b"hello, who is there?",
    b"PVLF\x00",
    b"PVLF\x22",  # more frames than any message has
    b"PVLF\x01" + (2**21 + 1).to_bytes(8, "little"),
    b"PVLF\x02" + (1).to_bytes(8, "little") + (2**63).to_bytes(8, "little"),
]


@pytest.fixture
def stranger(endpoint: str) -> Iterator[Stranger]:
    stranger: Stranger = UnixStranger() if endpoint == SCHEME else ZmqStranger()
    yield stranger
    stranger.close()


@pytest.mark.anyio
async def test_a_channel_drops_and_counts_what_is_no_message(endpoint: str, stranger: Stranger) -> None:
    channel = listen(endpoint)
    try:
        stranger.connect(channel.endpoint)

        def say_all() -> None:
            for frames in MALFORMED:
                stranger.say(frames)
            stranger.say(encode(Stop()))  # a message, but not one for the engine
            stranger.say(encode(Pong(nonce=4, role="draft", progress=0)))

        with anyio.fail_after(20):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(run_sync, say_all)
                assert await channel.receive() == Pong(nonce=4, role="draft", progress=0)
        assert channel.dropped == len(MALFORMED) + 1
    finally:
        await channel.aclose()


@pytest.mark.anyio
async def test_a_mailbox_drops_and_counts_what_is_no_message(endpoint: str, stranger: Stranger) -> None:
    mailbox = connect(stranger.bind(endpoint))
    try:

        def say_all() -> None:
            for frames in MALFORMED:
                stranger.say(frames)
            stranger.say(encode(Pong(nonce=4, role="draft", progress=0)))  # not one for an actor
            stranger.say(encode(Ping(nonce=4)))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(run_sync, say_all)
            assert await run_sync(mailbox.take, 20) == Ping(nonce=4)
        assert mailbox.dropped == len(MALFORMED) + 1
    finally:
        mailbox.close()


async def lost(channel: SocketChannel) -> str:
    """Wait until the connection is lost; why."""
    with anyio.fail_after(20):
        await channel.gone.wait()
    return channel.damage


@pytest.mark.anyio
@pytest.mark.parametrize("frames", DAMAGED)
async def test_a_damaged_message_is_a_lost_connection_for_both_ends(
    frames: list[bytes], endpoint: str, stranger: Stranger
) -> None:
    """What came before it is received. Afterwards nothing is sent, and nothing else is received."""
    channel = listen(endpoint)
    try:
        stranger.connect(channel.endpoint)
        stranger.say(encode(Pong(nonce=3, role="draft", progress=0)))
        stranger.say_bare(frames)
        stranger.say(encode(Pong(nonce=4, role="draft", progress=0)))
        assert await lost(channel) != ""
        with anyio.fail_after(20):
            assert await channel.receive() == Pong(nonce=3, role="draft", progress=0)
        with anyio.move_on_after(0.1) as scope:
            await channel.receive()
        assert scope.cancelled_caught
        channel.post(Ping(nonce=1))
        assert channel.dropped == 0
    finally:
        await channel.aclose()


@pytest.mark.anyio
@pytest.mark.parametrize("frames", DAMAGED)
async def test_a_damaged_message_closes_the_mailbox(frames: list[bytes], endpoint: str, stranger: Stranger) -> None:
    mailbox = connect(stranger.bind(endpoint))
    try:
        stranger.say(encode(Ping(nonce=3)))
        stranger.say_bare(frames)
        stranger.say(encode(Ping(nonce=4)))
        assert await run_sync(mailbox.take, 20) == Ping(nonce=3)
        with pytest.raises(ChannelClosed, match="message"):
            await run_sync(mailbox.take, 20)
    finally:
        mailbox.close()


@pytest.mark.anyio
async def test_messages_of_one_post_arrive_in_order_or_none_of_them(endpoint: str) -> None:
    """The sender gets an error for a message that cannot be encoded, and can use the connection afterwards."""
    channel = listen(endpoint)
    mailbox = connected(channel)
    try:
        beyond = Closed(session=2**70, role="draft")
        with pytest.raises(ProtocolError, match="too large"):
            mailbox.post(Closed(session=1, role="draft"), beyond)
        await run_sync(lambda: mailbox.post(Closed(session=2, role="draft"), Closed(session=3, role="draft")))
        with anyio.fail_after(20):
            assert [await channel.receive() for _ in range(2)] == [Closed(session=at, role="draft") for at in (2, 3)]
        assert (channel.dropped, channel.damage) == (0, "")
    finally:
        mailbox.close()
        await channel.aclose()


@pytest.mark.anyio
@pytest.mark.parametrize("sender", ["engine", "actor"])
@pytest.mark.parametrize("fault", ["lost", "repeated", "swapped", "damaged"])
async def test_any_fault_of_a_connection_ends_it_at_both_ends(sender: str, fault: str, endpoint: str) -> None:
    """Once, in the middle of a conversation; until then every message arrives."""
    channel = listen(endpoint)
    mailbox = connected(channel)
    spoil(channel if sender == "engine" else mailbox, fault, at=50)
    thread = threading.Thread(target=echo_until_closed, args=(mailbox,))
    thread.start()
    answered = 0
    try:
        with anyio.fail_after(60):
            while not channel.gone.is_set():
                channel.post(Ping(nonce=answered))
                with anyio.move_on_after(0.5):
                    assert await channel.receive() == Pong(nonce=answered, role="draft", progress=17)
                    answered += 1
            await channel.aclose()
            await run_sync(thread.join)
        assert 49 <= answered <= 50
    finally:
        await channel.aclose()


def spoil(end: Any, fault: str, at: int) -> None:
    """Have message ``at`` of one end suffer a fault."""
    write, count, held = end._wire._write, 0, list[Sequence[Buffer]]()

    def spoilt(messages: Sequence[Sequence[Buffer]]) -> None:
        nonlocal count
        (frames,) = messages
        count += 1
        if count != at:
            write([frames, *held])
            held.clear()
        elif fault == "repeated":
            write([frames, frames])
        elif fault == "swapped":
            held.append(frames)
        elif fault == "damaged":
            head = bytearray(frames[0])
            head[-1] ^= 0x10
            write([[bytes(head), *frames[1:]]])

    end._wire._write = spoilt


def echo_until_closed(mailbox: Mailbox) -> None:
    with suppress(ChannelClosed):
        echo(mailbox, 17)
    mailbox.close()


@pytest.mark.anyio
@pytest.mark.parametrize("data", NOT_FRAMED)
async def test_a_stream_that_is_out_of_step_is_a_lost_connection(data: bytes) -> None:
    """At both ends of a Unix socket."""
    stranger = UnixStranger()
    mailbox = connect(stranger.bind(SCHEME))
    channel = listen(SCHEME)
    other = UnixStranger()
    other.connect(channel.endpoint)
    try:
        for speaker in (stranger, other):
            speaker.say_bytes(data + bytes(16))
        with pytest.raises(ChannelClosed, match="framed message"):
            await run_sync(mailbox.take, 20)
        assert "framed message" in await lost(channel)
    finally:
        mailbox.close()
        await channel.aclose()
        stranger.close()
        other.close()


@pytest.mark.anyio
async def test_a_channel_is_full_by_bytes_too(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """And has room again when they have been sent."""
    monkeypatch.setattr("pvlm.transports.wire.MAILBOX_BYTES", 100_000)
    mask = PruneMask(session=1, bits=bytes(60_000), video_tokens=480_000, kept=1, method="uv", ratio=0.5)
    channel = listen(endpoint)
    try:
        posted = 0
        with pytest.raises(ChannelFull):
            for posted in range(100):  # a socket takes some by itself  # noqa: B007
                channel.post(mask)
        assert posted >= 2
        mailbox = connected(channel)
        with anyio.fail_after(20):
            for _ in range(posted):
                assert await run_sync(mailbox.take) == mask
        channel.post(Ping(nonce=1))
        assert await run_sync(mailbox.take, 20) == Ping(nonce=1)
        mailbox.close()
    finally:
        await channel.aclose()


@pytest.mark.anyio
async def test_an_actor_hears_at_once_that_the_engine_is_gone() -> None:
    channel = listen(SCHEME)
    mailbox = connected(channel)
    with anyio.fail_after(20):
        channel.post(Ping(nonce=1))
        assert await run_sync(mailbox.take) == Ping(nonce=1)
        await channel.aclose()
        with pytest.raises(ChannelClosed):
            await run_sync(mailbox.take)
        with pytest.raises(ChannelClosed):
            mailbox.post(Pong(nonce=1, role="draft", progress=0))
    mailbox.close()


@pytest.mark.anyio
async def test_an_endpoint_that_cannot_be_bound_is_an_error() -> None:
    with pytest.raises(OSError):
        listen("tcp://nonsense")


@pytest.mark.anyio
async def test_a_port_is_chosen_by_the_system() -> None:
    first, second = listen("tcp://127.0.0.1:*"), listen("tcp://127.0.0.1:*")
    try:
        assert first.endpoint.startswith("tcp://127.0.0.1:")
        assert first.endpoint != second.endpoint
    finally:
        await first.aclose()
        await second.aclose()


@pytest.mark.anyio
async def test_two_processes_talk_over_a_real_socket(endpoint: str) -> None:
    """Short messages in order, arrays as frames, and the last words of a process that ends."""
    channel = listen(endpoint)
    command = [sys.executable, "-m", "tests.transports.echo_actor", channel.endpoint]
    process = subprocess.Popen(command, cwd=ROOT, pass_fds=channel.descriptors)  # noqa: ASYNC220
    channel.handed_over()
    try:
        with anyio.fail_after(60):
            for nonce in range(200):
                channel.post(Ping(nonce=nonce))
            for nonce in range(200):
                assert await channel.receive() == Pong(nonce=nonce, role="draft", progress=process.pid)
            window = DraftWindow(
                session=1,
                epoch=0,
                start=0,
                tokens=tuple(range(64)),
                proposal_ids=np.arange(64_000, dtype=np.int32).reshape(64, -1),
                proposal_probs=np.linspace(0, 1, 64_000, dtype=np.float32).reshape(64, -1),
            )
            channel.post(window)
            assert plain(await channel.receive()) == plain(window)
            channel.post(Stop())
            assert await channel.receive() == Closed(session=201, role="draft")
            assert await run_sync(process.wait, 20) == 0
    finally:
        process.kill()
        process.wait()
        await channel.aclose()
