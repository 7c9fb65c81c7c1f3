"""How messages get from the engine to an actor and back: one contract, two ways.

The two ends differ, because their hosts do. The engine lives on an event loop: its end, `Channel`, never blocks. An
actor is a thread (or a process) that runs a model: its end, `Mailbox`, is read between two tokens without an event
loop, so that neither a message nor a token pays for a thread switch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from pvlm_protocols.messages import FromActor, ToActor

MAILBOX_MESSAGES = 1024
"""Messages that may wait at one end before `Channel.post` refuses more."""


class ChannelClosed(Exception):
    """This end has been closed."""


class ChannelFull(Exception):
    """The actor does not read its mailbox: `MAILBOX_MESSAGES` messages wait there."""


class Channel(Protocol):
    """The engine's end. Used from one event loop only."""

    @property
    def dropped(self) -> int:
        """Messages that were received and dropped: malformed, damaged, repeated, or out of turn."""
        ...

    def post(self, message: ToActor) -> None:
        """Send without waiting, in order. Raises ChannelFull, ChannelClosed."""
        ...

    async def receive(self) -> FromActor:
        """The next message. Raises ChannelClosed after `aclose`."""
        ...

    def hand_on(self, listener: Callable[[FromActor], None]) -> None:
        """Call ``listener`` with every message that waits, and from now on with every one that comes; `receive` gets
        none any more. It is called where the message was read, outside of any task, which saves a turn of the event
        loop. It must not raise.
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
        """The next message, or None if none came within ``timeout_s`` (None: wait for ever; 0: do not wait).

        Raises ChannelClosed when the other end is known to be gone.
        """
        ...

    def post(self, message: FromActor) -> None:
        """Send, in order; may wait for an engine that is slow to read.

        Raises ChannelClosed when the other end is known to be gone.
        """
        ...

    def close(self) -> None:
        """Close this end; messages already posted are still delivered. May be called twice."""
        ...
