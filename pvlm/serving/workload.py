"""What a server works on: how many requests, how many bytes of theirs, and whether it takes more."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import anyio

from pvlm.serving.refusals import RETRY_AFTER, Refusal

CUT_OFF_S = 1.0
"""How long requests that were cut off may take to end."""


class Workload:
    """The requests in progress. Bounds them and their bytes, and ends with them."""

    def __init__(self, max_requests: int, max_bytes: int) -> None:
        """``max_requests``: answers that are written or wait; ``max_bytes``: of all their bodies and files."""
        self.requests = 0
        self.bytes = 0
        self.draining = False
        self._max_requests = max_requests
        self._max_bytes = max_bytes
        self._scopes: set[anyio.CancelScope] = set()
        self._ended = anyio.Event()

    @contextmanager
    def place(self) -> Iterator[Holding]:
        """Hold a place for one request. Raises Refusal if there is none, or if the request was cut off."""
        if self.draining:
            raise _stopping()
        if self.requests >= self._max_requests:
            raise Refusal(
                429,
                f"{self.requests} requests are in progress or wait: try again later",
                code="queue_full",
                headers=RETRY_AFTER,
            )
        scope, holding = anyio.CancelScope(), Holding(self)
        self.requests += 1
        self._scopes.add(scope)
        try:
            with scope:
                yield holding
            if scope.cancelled_caught:
                raise _stopping()
        finally:
            holding.release()
            self._scopes.remove(scope)
            self.requests -= 1
            self._ended.set()

    def take(self, size: int) -> None:
        """Count more bytes. Raises Refusal beyond the limit."""
        if self.bytes + size > self._max_bytes:
            raise Refusal(
                429, "the server holds as many videos as it may: try again later", code="busy", headers=RETRY_AFTER
            )
        self.bytes += size

    async def drain(self, timeout_s: float) -> None:
        """Take no more requests, wait for those in progress, and cut them off after ``timeout_s``."""
        self.draining = True
        with anyio.move_on_after(timeout_s):
            await self._all_ended()
        for scope in self._scopes:
            scope.cancel()
        with anyio.move_on_after(CUT_OFF_S):
            await self._all_ended()

    async def _all_ended(self) -> None:
        while self.requests:
            self._ended = anyio.Event()
            await self._ended.wait()


class Holding:
    """The bytes of one request."""

    def __init__(self, workload: Workload) -> None:
        self._workload = workload
        self._bytes = 0

    def take(self, size: int) -> None:
        """Hold more bytes. Raises Refusal if all requests together hold too many."""
        self._workload.take(size)
        self._bytes += size

    def release(self) -> None:
        """Hold none any more."""
        self._workload.bytes -= self._bytes
        self._bytes = 0


def _stopping() -> Refusal:
    return Refusal(503, "the server is stopping: ask another one", code="stopping", headers=RETRY_AFTER)
