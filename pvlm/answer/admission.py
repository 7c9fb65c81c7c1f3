"""Admission: how many answers are written at once, how many may wait, and how much memory their videos take."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import anyio

from pvlm.config import EngineConfig
from pvlm.errors import EngineBusy
from pvlm.telemetry.metrics import REQUESTS_RUNNING, REQUESTS_WAITING
from pvlm.telemetry.reporter import Reporter
from pvlm.video import Room


class Admission:
    """The places and the queue of one open engine: first come, first served. ``room``: for the frames of their
    videos.
    """

    def __init__(self, config: EngineConfig, reporter: Reporter) -> None:
        self._config = config
        self._reporter = reporter
        self.room = Room(config.max_video_bytes)
        self._places = anyio.Semaphore(config.max_sessions)

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Wait for a place, and hold it.

        Raises EngineBusy at once if too many wait.
        """
        config = self._config
        waiting = self._places.statistics().tasks_waiting
        if self._places.value == 0 and waiting >= config.max_waiting:
            raise EngineBusy(
                f"{config.max_sessions} answers are being written (max_sessions) and {waiting} wait (max_waiting): "
                "try again later, or allow more"
            )
        async with AsyncExitStack() as holding:
            with self._reporter.during(REQUESTS_WAITING):
                await holding.enter_async_context(self._places)
            with self._reporter.during(REQUESTS_RUNNING):
                yield
