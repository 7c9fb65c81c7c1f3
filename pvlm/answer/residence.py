"""Where answers are written: a task of the engine's own, which owns its models and all that its callers leave there."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import anyio

from pvlm.answer.admission import Admission
from pvlm.answer.sight import Sights
from pvlm.config import EngineConfig
from pvlm.errors import EngineStateError
from pvlm.log import log
from pvlm.runtime.loops import check_loop, running_loop
from pvlm.runtime.pair import OnLoading, Pair
from pvlm.telemetry.reporter import Reporter
from pvlm.video.decoder import Decoders
from pvlm.workers.memory import kept_bytes

_RUNNING: set[asyncio.Task[None]] = set()
"""An event loop holds its tasks only weakly."""


class Residence:
    """The running models of an engine, and the queue before them, in a task of their own.

    Any task of the loop may open it, close it, and let work run in it. A request takes no time and is never lost. Its
    caller only waits, so a caller that is cancelled, however often, leaves nothing half done.
    """

    def __init__(self, config: EngineConfig, on_loading: OnLoading, reporter: Reporter, *, stays: bool) -> None:
        """Begin to load the models. ``stays``: for more than one answer. Raises EngineStateError without an asyncio
        event loop.
        """
        self.loop = running_loop()
        self.pair = Pair(config, on_loading, reporter)
        self.admission = Admission(config, reporter)
        most = kept_bytes(config.prefix_cache_bytes) if stays else 0
        self.sights = Sights(self.pair, self.admission.room, most, reporter, Decoders(refills=stays))
        self._scope = anyio.CancelScope()
        self._opened = anyio.Event()
        self._ended = anyio.Event()
        self._error: Exception | None = None
        task = asyncio.create_task(self._keep(), name="pvlm-engine")
        _RUNNING.add(task)
        task.add_done_callback(self._gone)

    async def _keep(self) -> None:
        decoders = self.sights.decoders
        if self.pair.config.transport != "inproc":  # a process more costs little beside those of the models
            decoders.prepare()
        try:
            with self._scope:
                async with self.pair:
                    self._opened.set()
                    await anyio.sleep_forever()
        except Exception as error:
            self._error = error
            if self._opened.is_set():
                log.error("engine_failed", error=type(error).__name__, reason=str(error), exc_info=error)
        finally:
            await decoders.aclose()

    def _gone(self, task: asyncio.Task[None]) -> None:
        _RUNNING.discard(task)
        self._ended.set()
        self._opened.set()

    async def opened(self) -> None:
        """Wait until the models are loaded. Raises ModelError, and EngineStateError if it is closed meanwhile.

        A caller that is cancelled while it waits closes the residence.
        """
        try:
            await self._opened.wait()
        except BaseException:
            self.close()
            await self.closed()
            raise
        if self._ended.is_set():
            if self._error is not None:
                raise self._error from self._error.__cause__
            raise EngineStateError("this engine was closed while it loaded its models")

    def close(self) -> None:
        """Begin to end the work and the models."""
        self._scope.cancel()

    async def aclose(self) -> None:
        """Close it, and wait until nothing is left. Raises EngineStateError on another event loop."""
        if not self._ended.is_set():
            check_loop(self.loop)
        self.close()
        await self.closed()

    async def closed(self) -> None:
        """Wait until nothing is left. A cancelled task waits too; only one that is cancelled again does not."""
        with anyio.CancelScope(shield=True):
            await self._ended.wait()

    @property
    def running(self) -> bool:
        """Whether the models are loaded, and nobody has begun to close them."""
        return self._opened.is_set() and not self.over

    @property
    def over(self) -> bool:
        """Whether it is being closed, its loop has ended, or it has failed."""
        return self._ended.is_set() or self._scope.cancel_called

    def check(self) -> None:
        """Raise EngineStateError unless it runs, and belongs to the caller's event loop."""
        self.check_not_over()
        check_loop(self.loop)
        if not self._opened.is_set():
            raise EngineStateError("this engine is still loading its models: await `async with engine` first")

    def check_not_over(self) -> None:
        """Raise EngineStateError if it is `over`, with the reason."""
        if self._error is not None:
            raise EngineStateError(f"this engine has failed: {self._error}") from self._error
        if self.over:
            raise EngineStateError("this engine is closed: make another with Engine.create()")

    def start(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run work in the engine's task group. ``work`` must not raise."""
        self.check()
        self.pair.start(work)
