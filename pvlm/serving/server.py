"""A server that runs the application until a signal, and then lets running answers end."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from contextvars import Context
from types import FrameType

import h11
import uvicorn
from starlette.applications import Starlette
from uvicorn.protocols.http.h11_impl import H11Protocol

from pvlm.errors import ConfigError
from pvlm.log import log
from pvlm.serving.workload import CUT_OFF_S, Workload

ASKING_S = 20.0
"""How long a connection may take from its beginning, or from a reply, to the end of the next request's header."""
CLOSING_S = 2.0
"""Kept of the time to drain, to close connections and the models."""


def bind(host: str, port: int) -> socket.socket:
    """A socket on an address, which refuses connections until a server listens. Raises ConfigError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((host, port))
    except (OSError, OverflowError) as error:
        bound.close()
        raise ConfigError(f"cannot listen at {host}, port {port}: {error}") from None
    bound.set_inheritable(False)
    return bound


class Connection(H11Protocol):
    """A connection that is closed if it does not ask in time: many that say nothing would use up the server's."""

    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """As in the base class."""
        super().connection_made(transport)
        self._expect_request()

    def on_response_complete(self) -> None:
        """As in the base class."""
        super().on_response_complete()
        self._expect_request()

    def connection_lost(self, exc: Exception | None) -> None:
        """As in the base class."""
        super().connection_lost(exc)
        if self._deadline is not None:
            self._deadline.cancel()

    def _expect_request(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        self._deadline = self.loop.call_later(ASKING_S, self._close_unless_asked)

    def _close_unless_asked(self) -> None:
        if self.conn.their_state is h11.IDLE:
            self.transport.close()


class Server(uvicorn.Server):
    """Ends on SIGTERM or SIGINT: new requests get 503, running ones end, within ``drain_timeout_s`` in all.

    A second signal ends it at once.
    """

    def __init__(self, app: Starlette, drain_timeout_s: float, on_started: Callable[[], None] | None = None) -> None:
        """``on_started``: is called when the server listens."""
        super().__init__(
            uvicorn.Config(
                app,
                http=Connection,
                access_log=False,  # the application logs
                log_config=None,
                server_header=False,
                timeout_graceful_shutdown=1,
                ws="none",
            )
        )
        self._workload: Workload = app.state.workload
        self._drain_timeout_s = drain_timeout_s
        self._on_started = on_started
        self._draining: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """As in the base class."""
        await super().startup(sockets)
        self._loop = asyncio.get_running_loop()
        if self.started and self._on_started is not None:
            self._on_started()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to end; a second time, end at once."""
        if self._workload.draining or self._loop is None:
            self.should_exit = self.force_exit = True
        else:
            self._workload.draining = True
            self._loop.call_soon_threadsafe(self.end, context=Context())  # of no request

    def end(self) -> None:
        """Begin to end."""
        self._draining = asyncio.ensure_future(self._drain())

    async def _drain(self) -> None:
        log.info("server_draining", requests=self._workload.requests, timeout_s=self._drain_timeout_s)
        try:
            await self._workload.drain(max(0.0, self._drain_timeout_s - CLOSING_S - CUT_OFF_S))
        finally:
            self.should_exit = True
