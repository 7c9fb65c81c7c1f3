"""What the decoder process and its parent say to each other: lines of JSON over a socket pair.

The first line is the parent's, the `pvlm.video.request.Request`. Then the process says how many bytes its frames need,
and waits for a line that allows them. Then it says what share of the frames it has read.
"""

from __future__ import annotations

import json
import math
import socket
from collections.abc import AsyncIterator, Callable
from typing import Any, Literal

import anyio

from pvlm.video.room import Lease

Topic = Literal["bytes", "read"]
OnProgress = Callable[[float], None]

_LONGEST_LINE = 4096


class NonsenseError(Exception):
    """The decoder process says what it should not say."""


class Reporter:
    """The decoder process's end."""

    def __init__(self, fd: int) -> None:
        self._socket = socket.socket(fileno=fd)

    def request(self) -> Any:
        """Wait for the first line, and return its value; None where the parent has gone."""
        with self._socket.makefile("rb") as lines:
            line = lines.readline()
        return json.loads(line) if line.endswith(b"\n") else None

    def ask_for(self, size: int) -> None:
        """Wait until the parent has room for ``size`` bytes, which replace those of an earlier call."""
        self._say("bytes", size)
        self._socket.recv(1)

    def progress(self, fraction: float) -> None:
        """Say what share of the frames has been read."""
        self._say("read", fraction)

    def close(self) -> None:
        """End the conversation."""
        self._socket.close()

    def _say(self, topic: Topic, value: float) -> None:
        self._socket.sendall(json.dumps([topic, value]).encode() + b"\n")


class Listener:
    """The parent's end: it takes room for the frames, and passes progress on."""

    def __init__(self, end: socket.socket, lease: Lease, on_progress: OnProgress | None) -> None:
        end.setblocking(False)
        self._socket = end
        self._lease = lease
        self._on_progress = on_progress

    async def listen(self, limit: anyio.CancelScope) -> None:
        """Until the process closes its end. The time that it waits for room does not count for the ``limit``.

        Raises NonsenseError if the process says something else, and whatever ``on_progress`` raises.
        """
        async for topic, value in self._reports():
            if topic == "bytes":
                left_s, limit.deadline = limit.deadline - anyio.current_time(), math.inf
                await self._lease.take(int(value))
                limit.deadline = anyio.current_time() + left_s
                try:
                    self._socket.send(b"\n")
                except OSError:
                    return  # it died in the meantime
            elif self._on_progress is not None:
                self._on_progress(min(max(float(value), 0.0), 1.0))

    async def _reports(self) -> AsyncIterator[tuple[str, float]]:
        rest = b""
        while True:
            await anyio.wait_readable(self._socket)
            try:
                data = self._socket.recv(1 << 16)
            except BlockingIOError:
                continue
            except OSError:
                return
            if not data:
                return
            *lines, rest = (rest + data).split(b"\n")
            if len(rest) > _LONGEST_LINE:
                raise NonsenseError("a line without an end")
            for line in lines:
                try:
                    topic, value = json.loads(line)
                    sane = topic in ("bytes", "read") and isinstance(value, int | float) and 0 <= value < 1 << 62
                except (ValueError, TypeError):
                    sane = False
                if not sane:
                    raise NonsenseError(repr(line))
                yield topic, value
