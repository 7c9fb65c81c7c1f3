"""One port and several workers: who is heard, who waits, who is turned away, and that connections begin anew."""

from __future__ import annotations

import asyncio
import shutil
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import anyio
import pytest
import zmq
from anyio.to_thread import run_sync

from pvlm.transports import ChannelClosed
from pvlm.transports.connections import MOST_CONNECTIONS
from pvlm.transports.curve import AUTHORIZED, Keys, new_keys
from pvlm.transports.zmq import FAREWELL, MOST_WAITING, ZmqServer
from pvlm.transports.zmq_mailbox import ZmqMailbox
from pvlm_protocols.messages import Loading, Ping, Pong
from tests.support.processes import descriptors_left

pytestmark = pytest.mark.anyio
PATIENCE_S = 20.0


@pytest.fixture
async def server() -> AsyncIterator[ZmqServer]:
    server = ZmqServer("tcp://127.0.0.1:*")
    yield server
    server.close()


@pytest.fixture
async def connect(server: ZmqServer) -> AsyncIterator[Callable[..., Any]]:
    """Makes mailboxes, which are closed when the test is over."""
    made: list[ZmqMailbox] = []

    async def make(keys: Keys | None = None, endpoint: str | None = None) -> ZmqMailbox:
        mailbox = await run_sync(ZmqMailbox, endpoint or server.endpoint, keys)
        made.append(mailbox)
        return mailbox

    yield make
    for mailbox in made:
        await run_sync(mailbox.close)


async def until(condition: Callable[[], bool]) -> None:
    with anyio.fail_after(PATIENCE_S):
        while not condition():
            await anyio.sleep(0.01)


async def received(channel: Any) -> Any:
    with anyio.fail_after(PATIENCE_S):
        return await channel.receive()


def closed(mailbox: ZmqMailbox) -> bool:
    """Does the mailbox hear that nobody listens any more? It may have messages before."""
    try:
        while mailbox.take(PATIENCE_S) is not None:
            pass
    except ChannelClosed:
        return True
    return False


async def in_a_row(server: ZmqServer, connect: Callable[..., Any], count: int) -> list[ZmqMailbox]:
    """Workers that wait in this order: ZeroMQ does not say which of several greetings came first."""
    waiting = []
    for number in range(1, count + 1):
        waiting.append(await connect())
        await until(lambda number=number: len(server._waiting) == number)  # type: ignore[misc]
    return waiting


# ---- turns --------------------------------------------------------------------------------------------------------


async def test_a_second_worker_waits_until_the_first_is_let_go(server: ZmqServer, connect: Callable[..., Any]) -> None:
    """What it has said meanwhile is not lost, and nothing of it gets into the first one's channel."""
    first, second = await in_a_row(server, connect, 2)
    channel = server.channel()
    first.post(Pong(nonce=1, role="draft", progress=0))
    second.post(Pong(nonce=2, role="draft", progress=0))
    channel.post(Ping(nonce=1))
    assert await received(channel) == Pong(nonce=1, role="draft", progress=0)
    assert await run_sync(first.take, PATIENCE_S) == Ping(nonce=1)
    assert await run_sync(second.take, 0.1) is None
    await channel.aclose()
    channel.dismiss("it hangs")
    assert await run_sync(closed, first)
    other = server.channel()
    assert await received(other) == Pong(nonce=2, role="draft", progress=0)
    other.post(Ping(nonce=2))
    assert await run_sync(second.take, PATIENCE_S) == Ping(nonce=2)
    await other.aclose()


async def test_a_worker_that_went_while_it_waited_does_not_get_a_turn(
    server: ZmqServer, connect: Callable[..., Any]
) -> None:
    first, second, third = await in_a_row(server, connect, 3)
    channel = server.channel()
    first.post(Loading(role="draft", fraction=1))
    await received(channel)
    second.post(Loading(role="draft", fraction=0.2))
    third.post(Loading(role="draft", fraction=0.3))
    await until(lambda: len(server._waiting) == 2)
    await run_sync(second.close)
    await until(lambda: len(server._waiting) == 1)
    await channel.aclose()
    other = server.channel()
    assert await received(other) == Loading(role="draft", fraction=0.3)
    await other.aclose()


async def test_no_more_wait_than_there_is_room_for(server: ZmqServer, connect: Callable[..., Any]) -> None:
    waiting = await in_a_row(server, connect, MOST_WAITING)
    assert await run_sync(closed, await connect())
    channel = server.channel()
    waiting[0].post(Loading(role="draft", fraction=1))
    assert await received(channel) == Loading(role="draft", fraction=1)
    await channel.aclose()


async def test_a_worker_that_says_too_much_before_its_turn_is_turned_away(
    server: ZmqServer, connect: Callable[..., Any]
) -> None:
    (mailbox,) = await in_a_row(server, connect, 1)
    for _ in range(MOST_WAITING + 1):
        mailbox.post(Loading(role="draft", fraction=0.1))
    assert await run_sync(closed, mailbox)
    assert not server._waiting


async def test_who_does_not_greet_is_not_heard(server: ZmqServer) -> None:
    channel = server.channel()
    context = zmq.Context()
    stranger = context.socket(zmq.DEALER)
    try:
        stranger.connect(server.endpoint)
        stranger.send(b"hello?")
        assert await run_sync(stranger.poll, PATIENCE_S * 1000)
        assert stranger.recv_multipart()[0] == FAREWELL
        assert channel.peer is None
    finally:
        context.destroy(linger=0)
        await channel.aclose()


# ---- connections that end -----------------------------------------------------------------------------------------


async def test_a_worker_that_comes_again_begins_anew(server: ZmqServer, connect: Callable[..., Any]) -> None:
    """Both ends number from 1, and what was under way over the old connection stays with it."""
    for turn in range(3):
        channel, mailbox = server.channel(), await connect()
        for nonce in range(5):
            channel.post(Ping(nonce=10 * turn + nonce))
            mailbox.post(Pong(nonce=10 * turn + nonce, role="draft", progress=turn))
        assert await received(channel) == Pong(nonce=10 * turn, role="draft", progress=turn)
        assert await run_sync(mailbox.take, PATIENCE_S) == Ping(nonce=10 * turn)
        await run_sync(mailbox.close)  # the rest is never read
        with anyio.fail_after(PATIENCE_S):
            await channel.gone.wait()
        channel.post(Ping(nonce=99))  # goes nowhere
        assert (channel.dropped, mailbox.dropped) == (0, 0)
        await channel.aclose()


async def test_a_worker_hears_that_the_engine_is_gone(server: ZmqServer, connect: Callable[..., Any]) -> None:
    """Whether it reads or writes: writing must not wait for ever."""
    reader, writer = await connect(), await connect()
    server.close()
    assert await run_sync(closed, reader)

    def write() -> None:
        with pytest.raises(ChannelClosed):
            while True:
                writer.post(Pong(nonce=1, role="draft", progress=0))

    with anyio.fail_after(PATIENCE_S):
        await run_sync(write)


async def test_what_an_engine_said_before_it_went_is_read(server: ZmqServer, connect: Callable[..., Any]) -> None:
    """Though both are there by the time that the worker looks."""
    mailbox = await connect()
    channel = server.channel()
    mailbox.post(Loading(role="draft", fraction=1))
    await received(channel)
    assert mailbox.take(0.1) is None
    channel.post(Ping(nonce=1))
    server.close()
    await anyio.sleep(0.1)
    assert mailbox._receive(PATIENCE_S)
    assert mailbox.take(PATIENCE_S) == Ping(nonce=1)
    assert closed(mailbox)
    await channel.aclose()


async def test_an_engine_that_is_not_there_is_an_error(connect: Callable[..., Any]) -> None:
    with pytest.raises(ConnectionRefusedError, match="nobody listens there"):
        await connect(endpoint="tcp://127.0.0.1:1")
    with pytest.raises(OSError):
        await connect(endpoint="tcp://no-such-host.invalid:5555")


# ---- keys ---------------------------------------------------------------------------------------------------------


def pairs(folder: Path) -> tuple[Keys, Keys]:
    """Of an engine and a worker that know each other."""
    engine, worker = new_keys(folder / "engine", "engine"), new_keys(folder / "worker", "gpu2")
    shutil.copy(worker, engine.parent / AUTHORIZED)
    shutil.copy(engine, worker.parent / AUTHORIZED)
    return Keys.load(engine.parent), Keys.load(worker.parent)


async def test_with_keys_the_worker_is_known_by_name(tmp_path: Path, connect: Callable[..., Any]) -> None:
    engine, worker = pairs(tmp_path)
    server = ZmqServer("tcp://127.0.0.1:*", engine)
    try:
        channel = server.channel()
        mailbox = await connect(worker, server.endpoint)
        mailbox.post(Pong(nonce=1, role="draft", progress=0))
        assert await received(channel) == Pong(nonce=1, role="draft", progress=0)
        assert channel.worker == "gpu2 (127.0.0.1)"
        channel.post(Ping(nonce=1))
        assert await run_sync(mailbox.take, PATIENCE_S) == Ping(nonce=1)
        assert server.refused == 0
    finally:
        server.close()


@pytest.mark.parametrize("protected", [True, False])
async def test_what_travels_with_keys_cannot_be_read(
    protected: bool, tmp_path: Path, connect: Callable[..., Any]
) -> None:
    """By a party in between: here, a relay that keeps what passes."""
    engine, worker = pairs(tmp_path)
    server = ZmqServer("tcp://127.0.0.1:*", engine if protected else None)
    seen = bytearray()

    async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while data := await source.read(65536):
                seen.extend(data)
                sink.write(data)
        sink.close()

    async def relay(client: asyncio.StreamReader, back: asyncio.StreamWriter) -> None:
        port = int(server.endpoint.rpartition(":")[2])
        reader, onward = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(pump(client, onward), pump(reader, back))

    between = await asyncio.start_server(relay, "127.0.0.1")
    try:
        channel = server.channel()
        endpoint = f"tcp://127.0.0.1:{between.sockets[0].getsockname()[1]}"
        mailbox = await connect(worker if protected else None, endpoint)
        mailbox.post(Loading(role="draft", fraction=0.5))
        await received(channel)
        assert (b"Loading" in seen) is not protected
        await run_sync(mailbox.close)
    finally:
        server.close()
        between.close()
        await between.wait_closed()


async def test_unknown_keys_are_refused_until_they_are_authorized(tmp_path: Path, connect: Callable[..., Any]) -> None:
    engine, worker = pairs(tmp_path)
    known = engine.authorized / "gpu2.key"
    known.rename(tmp_path / "gpu2.key")
    server = ZmqServer("tcp://127.0.0.1:*", engine)
    try:
        channel = server.channel()
        for attempt in range(1, 3):
            with pytest.raises(ConnectionRefusedError, match="does not know this worker's key"):
                await connect(worker, server.endpoint)
            await until(lambda attempt=attempt: server.refused == attempt)  # type: ignore[misc]
        assert worker.public.decode() in server.last_refusal
        (tmp_path / "gpu2.key").rename(known)
        mailbox = await connect(worker, server.endpoint)
        mailbox.post(Loading(role="draft", fraction=1))
        assert await received(channel) == Loading(role="draft", fraction=1)
        assert server.refused == 2
    finally:
        server.close()


async def test_only_one_side_with_keys_is_refused(
    tmp_path: Path, connect: Callable[..., Any], server: ZmqServer
) -> None:
    engine, worker = pairs(tmp_path)
    protected = ZmqServer("tcp://127.0.0.1:*", engine)
    try:
        with pytest.raises(ConnectionRefusedError, match="does it use keys"):
            await connect(None, protected.endpoint)
        await until(lambda: protected.refused == 1)
        assert "use keys as this engine does" in protected.last_refusal  # who looks first, hangs up
        with pytest.raises(ConnectionRefusedError, match="does it use keys"):
            await connect(worker, server.endpoint)
    finally:
        protected.close()


async def test_a_worker_does_not_talk_to_another_engine(tmp_path: Path, connect: Callable[..., Any]) -> None:
    """One that has the same address, and even knows the worker's key."""
    _, worker = pairs(tmp_path)
    false = new_keys(tmp_path / "false", "engine")
    shutil.copy(tmp_path / "worker" / "gpu2.key", false.parent / AUTHORIZED)
    server = ZmqServer("tcp://127.0.0.1:*", Keys.load(false.parent))
    try:
        with pytest.raises(ConnectionRefusedError, match="is the public key in authorized/ its own"):
            await connect(worker, server.endpoint)
        await until(lambda: server.refused == 1)
        assert server.last_refusal == "it has not this engine's public key"
    finally:
        server.close()


# ---- strangers ----------------------------------------------------------------------------------------------------


@pytest.fixture
def strange() -> Iterator[Callable[[ZmqServer], socket.socket]]:
    """Connects to a port, says nothing, and stays."""
    made: list[socket.socket] = []

    def connect(server: ZmqServer) -> socket.socket:
        stranger = socket.socket()
        made.append(stranger)
        stranger.settimeout(PATIENCE_S)
        stranger.connect(("127.0.0.1", int(server.endpoint.rpartition(":")[2])))
        return stranger

    yield connect
    for one in made:
        one.close()


def hung_up(stranger: socket.socket) -> bool:
    """Wait until the other side has closed the connection. (ZeroMQ's greeting may come before.)"""
    with suppress(ConnectionError):
        while stranger.recv(4096):
            pass
    return True


async def test_strangers_are_bounded_and_workers_are_not_among_them(
    server: ZmqServer, connect: Callable[..., Any], strange: Callable[[ZmqServer], socket.socket]
) -> None:
    """The oldest are hung up on. A worker that was there stays, and another can come."""
    channel, mailbox = server.channel(), await connect()
    mailbox.post(Loading(role="draft", fraction=0.1))
    await received(channel)
    strangers = []
    for _ in range(MOST_CONNECTIONS + 20):
        strangers.append(await run_sync(strange, server))
    for stranger in strangers[:20]:
        assert await run_sync(hung_up, stranger)
    second = await connect()
    second.post(Loading(role="draft", fraction=0.2))
    mailbox.post(Loading(role="draft", fraction=0.3))
    assert await received(channel) == Loading(role="draft", fraction=0.3)
    await channel.aclose()
    other = server.channel()
    assert await received(other) == Loading(role="draft", fraction=0.2)
    await other.aclose()


async def test_without_descriptors_strangers_are_hung_up_on(server: ZmqServer, connect: Callable[..., Any]) -> None:
    """ZeroMQ does not go on trying. The worker that was there is heard; another comes when there are some again."""
    channel, mailbox = server.channel(), await connect()
    mailbox.post(Loading(role="draft", fraction=0.1))
    await received(channel)
    waiting = [socket.socket() for _ in range(3)]  # while there are descriptors
    try:
        with descriptors_left(0):
            for stranger in waiting:
                stranger.settimeout(PATIENCE_S)
                stranger.connect(("127.0.0.1", int(server.endpoint.rpartition(":")[2])))
                assert await run_sync(hung_up, stranger)
            mailbox.post(Loading(role="draft", fraction=0.3))
            assert await received(channel) == Loading(role="draft", fraction=0.3)
    finally:
        for stranger in waiting:
            stranger.close()
    mailbox.close()
    await channel.aclose()
    other, second = server.channel(), await connect()
    second.post(Loading(role="draft", fraction=0.2))
    assert await received(other) == Loading(role="draft", fraction=0.2)
    await other.aclose()


async def test_a_worker_that_greets_and_goes_at_once_is_missed(
    server: ZmqServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even where the end of its connection is seen before its greeting."""
    channel = server.channel()
    seen: list[int] = []
    ended = server._connections.ended
    monkeypatch.setattr(server._connections, "ended", lambda number: (seen.append(number), ended(number))[1])
    ZmqMailbox(server.endpoint).close()  # on the event loop, which sees nothing meanwhile
    until_s = time.monotonic() + PATIENCE_S
    while not seen:
        assert time.monotonic() < until_s
        server._on_monitor()
    server._on_event()
    with anyio.fail_after(PATIENCE_S):
        await channel.gone.wait()
    await channel.aclose()
