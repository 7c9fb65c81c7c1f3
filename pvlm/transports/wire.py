"""What sockets have in common: messages become numbered, checked frames, and come back out of them in order."""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar

import structlog

from pvlm.transports import MAILBOX_MESSAGES, ChannelClosed, ChannelFull
from pvlm.transports.arrivals import Arrivals
from pvlm.transports.link import ASK_AFTER_S, Frames, Link
from pvlm_protocols.codec import ProtocolError, decode_for_actor, decode_from_actor, encode
from pvlm_protocols.messages import FromActor, Message, ToActor

Incoming = TypeVar("Incoming", bound=Message)

log = structlog.get_logger()


class Wire(Generic[Incoming]):
    """One end of a connection: a codec over a `Link`. What is not worth an exception is dropped, counted and logged."""

    def __init__(self, decode: Callable[[Frames], Incoming], write: Callable[[Frames], None], endpoint: str) -> None:
        """``write`` sends frames, or queues them; ``endpoint`` is for the log."""
        self.link = Link()
        self._decode = decode
        self._write = write
        self._endpoint = endpoint
        self._malformed = 0

    @property
    def dropped(self) -> int:
        return self._malformed + self.link.dropped

    def post(self, message: Message) -> None:
        """Raises ProtocolError where the message exceeds the limits, and what ``write`` raises."""
        self._write(self.link.send(encode(message)))

    def arrived(self, frames: Frames) -> Iterator[Incoming]:
        """The messages whose turn has come, mostly one. What the other end must hear is written before."""
        try:
            messages, answers = self.link.receive(frames)
        except ProtocolError as error:
            self.damaged(error)
            return
        for answer in answers:
            self._write(answer)
        for message in messages:
            try:
                yield self._decode(message)
            except ProtocolError as error:
                self._malformed += 1
                self._log(error)

    def damaged(self, error: ProtocolError) -> None:
        """Something has come that may have been a message."""
        self._malformed += 1
        self._log(error)
        self._write(self.link.complaint())

    def ask(self) -> None:
        """Ask for an acknowledgement if one is overdue."""
        if (question := self.link.question()) is not None:
            self._write(question)

    def _log(self, error: ProtocolError) -> None:
        log.debug("message_unreadable", endpoint=self._endpoint, reason=str(error))  # the supervisor tells how many


class WireChannel(ABC):
    """The engine's end of a socket; see `pvlm.transports.Channel`."""

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint
        self._loop = asyncio.get_running_loop()
        self._arrivals = Arrivals(self._loop)
        self._outgoing: deque[Any] = deque()
        self._wire = Wire[FromActor](decode_from_actor, self._queue, endpoint)
        self._asking: asyncio.TimerHandle | None = None

    @property
    def dropped(self) -> int:
        return self._wire.dropped

    def post(self, message: ToActor) -> None:
        if self._arrivals.closed:
            raise ChannelClosed
        if self._wire.link.unacknowledged >= MAILBOX_MESSAGES:
            raise ChannelFull
        self._wire.post(message)
        self._ask_later()

    async def receive(self) -> FromActor:
        return await self._arrivals.get()

    def hand_on(self, listener: Callable[[FromActor], None]) -> None:
        self._arrivals.hand_on(listener)

    async def aclose(self) -> None:
        if not self._arrivals.closed:
            self._arrivals.close()
            if self._asking is not None:
                self._asking.cancel()
            self._close()

    def _arrived(self, frames: Frames) -> None:
        for message in self._wire.arrived(frames):
            self._arrivals.put(message)

    def _ask_later(self) -> None:
        if self._asking is None and (seconds := self._wire.link.question_in_s()) is not None:
            self._asking = self._loop.call_later(seconds, self._ask)

    def _ask(self) -> None:
        if self._outgoing:  # the other end could not know more yet
            self._asking = self._loop.call_later(ASK_AFTER_S, self._ask)
            return
        self._asking = None
        self._wire.ask()
        self._ask_later()

    @abstractmethod
    def _queue(self, frames: Frames) -> None:
        """Append to `_outgoing`, and send what can be sent."""

    @abstractmethod
    def _close(self) -> None: ...


class WireMailbox(ABC):
    """The actor's end of a socket; see `pvlm.transports.Mailbox`."""

    def __init__(self, endpoint: str) -> None:
        self._wire = Wire[ToActor](decode_for_actor, self._write, endpoint)
        self._taken: deque[ToActor] = deque()

    @property
    def dropped(self) -> int:
        return self._wire.dropped

    def take(self, timeout_s: float | None = None) -> ToActor | None:
        deadline_s = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            for frames in () if self._taken else self._waiting():
                self._taken.extend(self._wire.arrived(frames))
                if self._taken:
                    break
            if self._taken:
                return self._taken.popleft()
            self._wire.ask()
            left_s = None if deadline_s is None else max(0.0, deadline_s - time.monotonic())
            waits = [wait_s for wait_s in (left_s, self._wire.link.question_in_s()) if wait_s is not None]
            if not self._receive(min(waits, default=None)) and left_s is not None and left_s == min(waits):
                return None

    def post(self, message: FromActor) -> None:
        self._wire.post(message)

    @abstractmethod
    def _waiting(self) -> Iterator[Frames]:
        """Take what has been received, one after the other."""

    @abstractmethod
    def _receive(self, timeout_s: float | None) -> bool:
        """Whether something came within ``timeout_s`` (None: wait for ever; 0: do not wait). Raises ChannelClosed."""

    @abstractmethod
    def _write(self, frames: Frames) -> None:
        """Raises ChannelClosed."""
