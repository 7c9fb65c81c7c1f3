"""What both kinds of sockets share: messages become numbered, checked frames, and frames become messages."""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Generic, TypeVar

from pvlm.log import log
from pvlm.transports import MAILBOX_BYTES, MAILBOX_MESSAGES, ChannelClosed, ChannelFull
from pvlm.transports.arrivals import Arrivals
from pvlm.transports.link import ConnectionDamaged, Frames, Link
from pvlm_protocols.codec import INLINE_BYTES, ProtocolError, decode_for_actor, decode_from_actor, encode
from pvlm_protocols.messages import FromActor, Message, Open, ToActor, VideoContent

Incoming = TypeVar("Incoming", bound=Message)


class Wire(Generic[Incoming]):
    """One end of a connection: a codec over a `Link`."""

    def __init__(
        self, decode: Callable[[Frames], Incoming], write: Callable[[Sequence[Frames]], None], endpoint: str
    ) -> None:
        """``write`` sends the frames of messages, or queues them; ``endpoint`` is for the log."""
        self.dropped = 0
        """Messages that arrived as they were sent, and that the codec refused."""
        self._link = Link()
        self._decode = decode
        self._write = write
        self._endpoint = endpoint

    def post(self, *messages: Message) -> None:
        """Write messages. Raises ProtocolError where one exceeds the limits, and what ``write`` raises."""
        encoded = [_encoded(message) for message in messages]  # before any is numbered: one may be refused
        self._write([self._link.send(frames, known) for frames, known in encoded])

    def arrived(self, frames: Frames) -> Incoming | None:
        """Return the message, or None where the codec refuses it. Raises ConnectionDamaged."""
        received = self._link.receive(frames)
        try:
            return self._decode(received)
        except ProtocolError as error:
            self.dropped += 1
            log.debug("message_unreadable", endpoint=self._endpoint, reason=str(error))  # the supervisor counts them
            return None


def _encoded(message: Message) -> tuple[Frames, tuple[int | None, ...]]:
    """The frames of a message, and the checksums of its arrays that are known."""
    known: tuple[int | None, ...] = ()
    if isinstance(message, Open | VideoContent):
        known = tuple(video.checksum for video in message.visuals if video.pixels.nbytes > INLINE_BYTES)
    return encode(message), known


class WireChannel(ABC):
    """The engine's end of a socket; see `pvlm.transports.Channel`."""

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint
        self.gone = asyncio.Event()
        """Set when the connection is lost, also to a worker that has ended."""
        self.damage = ""
        """What was wrong with the received bytes, if that is why the connection is lost."""
        self.descriptors: tuple[int, ...] = ()
        """What the worker's process must inherit to connect."""
        self._loop = asyncio.get_running_loop()
        self._arrivals = Arrivals(self._loop)
        self._outgoing: deque[tuple[int, list[Any]]] = deque()
        """Messages that were not sent yet: the size of each in bytes, and its parts."""
        self._outgoing_bytes = 0
        self._wire = Wire[FromActor](decode_from_actor, self._write, endpoint)

    @property
    def dropped(self) -> int:
        return self._wire.dropped

    def post(self, message: ToActor) -> None:
        if self._arrivals.closed:
            raise ChannelClosed
        if len(self._outgoing) >= MAILBOX_MESSAGES or self._outgoing_bytes >= MAILBOX_BYTES:
            raise ChannelFull
        self._wire.post(message)

    async def receive(self) -> FromActor:
        return await self._arrivals.get()

    def hand_on(self, listener: Callable[[FromActor], None]) -> None:
        self._arrivals.hand_on(listener)

    async def aclose(self) -> None:
        if not self._arrivals.closed:
            self._arrivals.close()
            self._close()

    def handed_over(self) -> None:
        """The worker's process has been started, and has inherited `descriptors`."""
        self.descriptors = ()

    def cut(self, damage: str = "") -> None:
        """The connection is lost. Messages to the worker are dropped from now on."""
        self.damage = self.damage or damage
        self._outgoing.clear()
        self._outgoing_bytes = 0
        self.gone.set()

    def _arrived(self, frames: Frames) -> None:
        """Take in a message. Raises ConnectionDamaged."""
        if (message := self._wire.arrived(frames)) is not None:
            self._arrivals.put(message)

    def _write(self, messages: Sequence[Frames]) -> None:
        for frames in messages:
            if self.gone.is_set():
                return
            size = sum(memoryview(frame).nbytes for frame in frames)
            self._outgoing.append((size, self._parts(frames)))
            self._outgoing_bytes += size
            if len(self._outgoing) == 1:  # else the socket takes no more just now
                self._send()

    def _sent(self) -> None:
        """The first message of `_outgoing` has been sent."""
        if self._outgoing:  # else the connection was lost meanwhile
            size, _ = self._outgoing.popleft()
            self._outgoing_bytes -= size

    def _parts(self, frames: Frames) -> list[Any]:
        """What is to be sent for a message."""
        return list(frames)

    @abstractmethod
    def _send(self) -> None:
        """Send what can be sent; the rest waits for a worker that has not connected yet, or does not read."""

    @abstractmethod
    def _close(self) -> None: ...


class WireMailbox(ABC):
    """The actor's end of a socket; see `pvlm.transports.Mailbox`."""

    def __init__(self, endpoint: str) -> None:
        self._wire = Wire[ToActor](decode_for_actor, self._write, endpoint)

    @property
    def dropped(self) -> int:
        return self._wire.dropped

    def take(self, timeout_s: float | None = None) -> ToActor | None:
        deadline_s = None if timeout_s is None else time.monotonic() + timeout_s
        try:
            while True:
                for frames in self._waiting():
                    if (message := self._wire.arrived(frames)) is not None:
                        return message
                left_s = None if deadline_s is None else max(0.0, deadline_s - time.monotonic())
                if not self._receive(left_s):
                    return None
        except ConnectionDamaged as error:
            raise ChannelClosed(str(error)) from None

    def post(self, *messages: FromActor) -> None:
        self._wire.post(*messages)

    @abstractmethod
    def _waiting(self) -> Iterator[Frames]:
        """Yield and remove what has been received. Raises ChannelClosed."""

    @abstractmethod
    def _receive(self, timeout_s: float | None) -> bool:
        """Whether bytes arrived within ``timeout_s`` (None: wait for ever; 0: do not wait).

        Raises ChannelClosed and ConnectionDamaged.
        """

    @abstractmethod
    def _write(self, messages: Sequence[Frames]) -> None:
        """Raises ChannelClosed."""
