"""What has arrived at the engine's end and has not been received yet."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from pvlm.transports import ChannelClosed
from pvlm_protocols.messages import FromActor


class Arrivals:
    """A queue with one receiver, used on one event loop only; or none, where what comes is handed on at once.

    Unlike a memory stream it wakes its receiver in the same turn of the loop, and only if there is one.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._messages: deque[FromActor] = deque()
        self._awaited: asyncio.Future[None] | None = None
        self._listener: Callable[[FromActor], None] | None = None
        self.closed = False

    def __len__(self) -> int:
        return len(self._messages)

    def put(self, message: FromActor) -> None:
        if self.closed:
            return
        if self._listener is not None:
            self._listener(message)
        else:
            self._messages.append(message)
            self._wake()

    def hand_on(self, listener: Callable[[FromActor], None]) -> None:
        """Give the listener what waits, and from now on what comes."""
        while self._messages:
            listener(self._messages.popleft())
        self._listener = listener

    async def get(self) -> FromActor:
        """The next message. Raises ChannelClosed after `close`."""
        while not self.closed:
            if self._messages:
                return self._messages.popleft()
            self._awaited = self._loop.create_future()
            await self._awaited
        raise ChannelClosed

    def close(self) -> None:
        """What has not been received is lost. May be called twice."""
        self.closed = True
        self._wake()

    def _wake(self) -> None:
        if self._awaited is not None and not self._awaited.done():
            self._awaited.set_result(None)
