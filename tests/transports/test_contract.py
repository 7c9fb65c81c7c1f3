"""What `Channel` and `Mailbox` promise, shown for every transport alike."""

from __future__ import annotations

import threading
import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import anyio
import anyio.lowlevel
import msgspec
import numpy as np
import pytest
from anyio.to_thread import run_sync

from pvlm.transports import MAILBOX_MESSAGES, Channel, ChannelClosed, ChannelFull, Mailbox
from pvlm_protocols.messages import DraftWindow, Loading, Open, Ping, Pong, PruneMask, Rollback, Stop, Window
from pvlm_protocols.turns import VideoFrames
from tests.protocols.samples import FROM_ACTOR, SAMPLES, TO_ACTOR, plain
from tests.support.openings import asking
from tests.transports.conftest import Connect
from tests.transports.echo_actor import echo

pytestmark = pytest.mark.anyio
T = TypeVar("T")
PATIENCE_S = 20.0


@asynccontextmanager
async def ends(connect: Connect) -> AsyncIterator[tuple[Channel, Mailbox]]:
    channel, mailbox = connect()
    try:
        with anyio.fail_after(60):
            yield channel, mailbox
    finally:
        await channel.aclose()
        await run_sync(mailbox.close)


async def take(mailbox: Mailbox, timeout_s: float = PATIENCE_S) -> Any:
    return await run_sync(mailbox.take, timeout_s)


async def test_every_message_travels_as_it_is(connect: Connect) -> None:
    async with ends(connect) as (channel, mailbox):
        for message in SAMPLES:
            if isinstance(message, TO_ACTOR):
                channel.post(message)
                assert plain(await take(mailbox)) == plain(message)
            if isinstance(message, FROM_ACTOR):
                mailbox.post(message)
                assert plain(await channel.receive()) == plain(message)
        assert channel.dropped == mailbox.dropped == 0


async def test_messages_arrive_in_order_both_ways_at_once(connect: Connect) -> None:
    """From one end of the event loop and a thread at the other, each writing while it reads."""
    count = 500
    async with ends(connect) as (channel, mailbox):
        taken: list[int] = []

        def actor() -> None:
            for number in range(count):
                mailbox.post(Loading(role="draft", fraction=number / count))
                message = mailbox.take(PATIENCE_S)
                assert isinstance(message, Ping)
                taken.append(message.nonce)

        async def engine() -> None:
            for number in range(count):
                channel.post(Ping(nonce=number))
                if number % 7 == 0:
                    await anyio.lowlevel.checkpoint()

        received: list[float] = []

        async def listen() -> None:
            for _ in range(count):
                message = await channel.receive()
                assert isinstance(message, Loading)
                received.append(message.fraction)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(run_sync, actor)
            tasks.start_soon(engine)
            tasks.start_soon(listen)
        assert taken == list(range(count))
        assert received == [number / count for number in range(count)]


async def test_large_arrays_travel_and_keep_their_place_in_the_order(connect: Connect) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (32, 112, 112, 3), dtype=np.uint8)
    opening = next(message for message in SAMPLES if isinstance(message, Open))
    ids = np.arange(64 * 1024, dtype=np.int32).reshape(64, -1)
    probs = np.linspace(0, 1, 64 * 1024, dtype=np.float32).reshape(64, -1)
    window = DraftWindow(session=1, epoch=0, start=0, tokens=tuple(range(64)), proposal_ids=ids, proposal_probs=probs)
    async with ends(connect) as (channel, mailbox):
        video = VideoFrames(pixels=pixels, checksum=zlib.crc32(pixels))
        turns = (*asking("?", video), *asking("?", VideoFrames(pixels=pixels[::2])))
        large = msgspec.structs.replace(opening, turns=turns)
        channel.post(Ping(nonce=1))
        channel.post(large)
        channel.post(Ping(nonce=2))
        assert await take(mailbox) == Ping(nonce=1)
        assert plain(await take(mailbox)) == plain(large)
        assert await take(mailbox) == Ping(nonce=2)
        await run_sync(mailbox.post, window)  # it may wait until the engine has read the most of it
        mailbox.post(Pong(nonce=3, role="draft", progress=0))
        assert plain(await channel.receive()) == plain(window)
        assert await channel.receive() == Pong(nonce=3, role="draft", progress=0)


@pytest.mark.parametrize("timeout_s", [0, 0.05])
async def test_an_empty_mailbox_gives_none(connect: Connect, timeout_s: float) -> None:
    async with ends(connect) as (channel, mailbox):
        assert await take(mailbox, timeout_s) is None
        channel.post(Ping(nonce=1))
        assert await take(mailbox) == Ping(nonce=1)
        assert await take(mailbox, timeout_s) is None


async def test_a_waiting_take_is_woken_by_a_message(connect: Connect) -> None:
    """With no limit to its patience (None) too."""
    async with ends(connect) as (channel, mailbox):
        taken: list[Any] = []

        async def wait() -> None:
            taken.append(await run_sync(mailbox.take, None))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(wait)
            await anyio.sleep(0.05)
            channel.post(Ping(nonce=5))
        assert taken == [Ping(nonce=5)]


async def test_what_was_posted_before_the_actor_came_waits_for_it(connect: Connect) -> None:
    async with ends(connect) as (channel, mailbox):
        for nonce in range(20):
            channel.post(Ping(nonce=nonce))
        await anyio.sleep(0.05)
        assert [(await take(mailbox)).nonce for _ in range(20)] == list(range(20))


async def test_a_cancelled_receive_loses_nothing(connect: Connect) -> None:
    async with ends(connect) as (channel, mailbox):
        for nonce in range(3):
            with anyio.move_on_after(0.02) as scope:
                await channel.receive()
            assert scope.cancelled_caught
            mailbox.post(Pong(nonce=nonce, role="draft", progress=0))
            assert await channel.receive() == Pong(nonce=nonce, role="draft", progress=0)


async def test_a_mailbox_that_nobody_reads_becomes_full(connect: Connect) -> None:
    """Not at once (sockets have buffers of their own), but before memory is filled; and what was taken in arrives."""
    mask = PruneMask(session=1, bits=bytes(32 * 1024), video_tokens=8 * 32 * 1024, kept=1, method="uv", ratio=0.5)
    async with ends(connect) as (channel, mailbox):
        posted = 0
        full = False
        while not full and posted < 10 * MAILBOX_MESSAGES:
            try:
                channel.post(mask)
            except ChannelFull:
                full = True
            else:
                posted += 1
            if posted % 64 == 0:
                await anyio.lowlevel.checkpoint()
        assert full
        assert posted >= MAILBOX_MESSAGES
        for _ in range(posted):
            assert (await take(mailbox)).bits == mask.bits
        with anyio.fail_after(PATIENCE_S):
            while True:  # there is room again
                try:
                    channel.post(Ping(nonce=1))
                    break
                except ChannelFull:
                    await anyio.sleep(0.01)
        assert await take(mailbox) == Ping(nonce=1)


async def test_a_closed_channel_says_so_and_may_be_closed_twice(connect: Connect) -> None:
    async with ends(connect) as (channel, _):
        await channel.aclose()
        with pytest.raises(ChannelClosed):
            channel.post(Stop())
        with pytest.raises(ChannelClosed):
            await channel.receive()
        await channel.aclose()


async def test_closing_wakes_whoever_receives(connect: Connect) -> None:
    async with ends(connect) as (channel, _):
        ended: list[type] = []

        async def receive() -> None:
            try:
                await channel.receive()
            except BaseException as error:
                ended.append(type(error))
                if not isinstance(error, ChannelClosed):
                    raise

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(receive)
            await anyio.sleep(0.05)
            await channel.aclose()
        assert ended == [ChannelClosed]


async def test_a_cancelled_receiver_stays_cancelled_when_the_channel_closes_with_it(connect: Connect) -> None:
    async with ends(connect) as (channel, _):
        ended: list[type] = []

        async def receive() -> None:
            try:
                await channel.receive()
            except BaseException as error:
                ended.append(type(error))
                raise

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(receive)
            await anyio.sleep(0.05)
            tasks.cancel_scope.cancel()
            with anyio.CancelScope(shield=True):
                await channel.aclose()
        assert ended == [anyio.get_cancelled_exc_class()]


async def test_last_words_are_delivered(connect: Connect) -> None:
    """What the actor posts right before it closes its end arrives."""
    async with ends(connect) as (channel, mailbox):

        def last_words() -> None:
            for nonce in range(50):
                mailbox.post(Pong(nonce=nonce, role="draft", progress=0))
            mailbox.close()
            mailbox.close()

        thread = threading.Thread(target=last_words)
        thread.start()
        heard = [await channel.receive() for _ in range(50)]
        await run_sync(thread.join)
        assert [message.nonce for message in heard if isinstance(message, Pong)] == list(range(50))


async def test_an_actor_in_a_thread_answers(connect: Connect) -> None:
    """The way of a session: many short turns, then the end."""
    async with ends(connect) as (channel, mailbox):
        thread = threading.Thread(target=echo, args=(mailbox, 17))
        thread.start()
        for nonce in range(100):
            channel.post(Ping(nonce=nonce))
            assert await channel.receive() == Pong(nonce=nonce, role="draft", progress=17)
        channel.post(Rollback(session=3, epoch=1, keep=0, tokens=(), window=Window(gamma=1)))
        assert (await channel.receive()).session == 3  # type: ignore[union-attr]
        channel.post(Stop())
        assert (await channel.receive()).session == 101  # type: ignore[union-attr]
        await run_sync(thread.join)
