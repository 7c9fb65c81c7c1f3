"""What only the transport within a process can know: that the other end is gone."""

from __future__ import annotations

import asyncio

import pytest
from anyio.to_thread import run_sync

from pvlm.transports import MAILBOX_MESSAGES, ChannelClosed, ChannelFull, inproc
from pvlm_protocols.messages import Ping, Pong


@pytest.mark.anyio
async def test_the_actor_sees_that_the_engine_has_closed() -> None:
    channel, mailbox = inproc.connect()
    channel.post(Ping(nonce=1))
    await channel.aclose()
    assert await run_sync(mailbox.take, 5) == Ping(nonce=1)
    with pytest.raises(ChannelClosed):
        await run_sync(mailbox.take, 5)
    with pytest.raises(ChannelClosed):
        mailbox.post(Pong(nonce=1, role="draft", progress=0))


@pytest.mark.anyio
async def test_a_full_mailbox_can_be_closed() -> None:
    channel, mailbox = inproc.connect()
    for nonce in range(MAILBOX_MESSAGES):
        channel.post(Ping(nonce=nonce))
    with pytest.raises(ChannelFull):
        channel.post(Ping(nonce=-1))
    await channel.aclose()
    with pytest.raises(ChannelClosed):
        mailbox.post(Pong(nonce=1, role="draft", progress=0))


def test_an_actor_outlives_the_event_loop() -> None:
    """Its next message finds nobody, which is told as any closed channel."""

    async def connect() -> tuple[inproc.InprocChannel, inproc.InprocMailbox]:
        return inproc.connect()

    channel, mailbox = asyncio.run(connect())
    with pytest.raises(ChannelClosed):
        mailbox.post(Pong(nonce=1, role="draft", progress=0))
    asyncio.run(channel.aclose())


@pytest.mark.anyio
async def test_messages_under_way_to_a_closed_channel_are_dropped() -> None:
    channel, mailbox = inproc.connect()
    mailbox.post(Pong(nonce=1, role="draft", progress=0))
    await channel.aclose()
    await asyncio.sleep(0)
    with pytest.raises(ChannelClosed):
        await channel.receive()
