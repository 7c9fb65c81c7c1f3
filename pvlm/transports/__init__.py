"""How messages travel from the engine to an actor and back: one contract, three transports.

The two ends differ, because their surroundings do. The engine lives on an event loop: its end, `Channel`, never blocks.
An actor lives in a thread that runs a model: its end, `Mailbox`, is read between two tokens without an event loop, so
neither a message nor a token pays for a thread switch.

A message arrives once, in order and undamaged, or the connection is lost.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from pvlm_protocols.messages import FromActor, ToActor

MAILBOX_MESSAGES = 1024
MAILBOX_BYTES = 4 * 1024**3
"""How many messages, and how many bytes, may wait at one end before `Channel.post` refuses more."""


class ChannelClosed(Exception):
    """This end has been closed, or the connection to the other end is lost."""


class ChannelFull(Exception):
    """The actor does not read its mailbox: `MAILBOX_MESSAGES` messages or `MAILBOX_BYTES` bytes wait for it."""


class Channel(Protocol):
    """The engine's end. Used from one event loop only."""

    @property
    def dropped(self) -> int:
        """Messages that arrived and were dropped, because the codec refused them."""
        ...

    @property
    def damage(self) -> str:
        """What was wrong with the received bytes, if that is why the connection is lost."""
        ...

    def post(self, message: ToActor) -> None:
        """Send without waiting, in order. Raises ChannelFull, ChannelClosed."""
        ...

    async def receive(self) -> FromActor:
        """Return the next message. Raises ChannelClosed after `aclose`."""
        ...

    def hand_on(self, listener: Callable[[FromActor], None]) -> None:
        """Call ``listener`` with every message that waits, and from now on with every message that arrives.

        `receive` gets none any more. ``listener`` is called where the message was read, outside of any task, which
        saves a turn of the event loop. It must not raise.
        """
        ...

    async def aclose(self) -> None:
        """Close this end. May be called twice."""
        ...


class Mailbox(Protocol):
    """The actor's end. Used from the actor's thread only."""

    @property
    def dropped(self) -> int: ...

    def take(self, timeout_s: float | None = None) -> ToActor | None:
        """Return the next message, or None if none arrived within ``timeout_s`` (None: wait for ever; 0: do not wait).

        Raises ChannelClosed when the connection is lost.
        """
        ...

    def post(self, *messages: FromActor) -> None:
        """Send in order; may wait for an engine that is slow to read. Several at once may wake it only once.

        Raises ChannelClosed when the connection is lost.
        """
        ...

    def close(self) -> None:
        """Close this end; messages already posted are still delivered. May be called twice."""
        ...
