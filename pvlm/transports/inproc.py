"""Channel and mailbox within one process: a queue to the actor's thread, and calls to the event loop."""

from __future__ import annotations

import asyncio
import queue
from collections.abc import Callable

from pvlm.transports import MAILBOX_MESSAGES, ChannelClosed, ChannelFull
from pvlm.transports.arrivals import Arrivals
from pvlm_protocols.messages import FromActor, ToActor


def connect() -> tuple[InprocChannel, InprocMailbox]:
    """Two connected ends. Call it on the engine's event loop."""
    to_actor: queue.Queue[ToActor | None] = queue.Queue(MAILBOX_MESSAGES)
    channel = InprocChannel(to_actor)
    return channel, InprocMailbox(to_actor, channel)


class InprocChannel:
    """The engine's end; see `pvlm.transports.Channel`."""

    dropped = 0
    damage = ""

    def __init__(self, to_actor: queue.Queue[ToActor | None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._to_actor = to_actor
        # The event loop always empties this, so it needs no bound of its own.
        self._arrivals = Arrivals(self._loop)

    def post(self, message: ToActor) -> None:
        if self._arrivals.closed:
            raise ChannelClosed
        try:
            self._to_actor.put_nowait(message)
        except queue.Full:
            raise ChannelFull from None

    async def receive(self) -> FromActor:
        return await self._arrivals.get()

    def hand_on(self, listener: Callable[[FromActor], None]) -> None:
        self._arrivals.hand_on(listener)

    async def aclose(self) -> None:
        if self._arrivals.closed:
            return
        self._arrivals.close()
        try:
            self._to_actor.put_nowait(None)
        except queue.Full:
            pass  # the actor meets `ChannelClosed` at its next post

    def deliver(self, message: FromActor) -> None:
        """Called by the actor's thread."""
        if self._arrivals.closed:
            raise ChannelClosed
        try:
            self._loop.call_soon_threadsafe(self._arrivals.put, message)
        except RuntimeError:  # the event loop is gone
            raise ChannelClosed from None


class InprocMailbox:
    """The actor's end; see `pvlm.transports.Mailbox`."""

    dropped = 0

    def __init__(self, from_engine: queue.Queue[ToActor | None], channel: InprocChannel) -> None:
        self._from_engine = from_engine
        self._channel = channel

    def take(self, timeout_s: float | None = None) -> ToActor | None:
        try:
            message = self._from_engine.get(timeout_s != 0, timeout_s)
        except queue.Empty:
            return None
        if message is None:
            raise ChannelClosed
        return message

    def post(self, *messages: FromActor) -> None:
        for message in messages:
            self._channel.deliver(message)

    def close(self) -> None:
        """Nothing is held: what was posted is with the event loop already."""
