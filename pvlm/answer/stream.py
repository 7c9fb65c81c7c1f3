"""The stream of one answer, as its caller holds it: chunks as they are written, and the whole answer."""

from __future__ import annotations

from asyncio import AbstractEventLoop
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import anyio

from pvlm.answer.life import Life, report_end
from pvlm.answer.question import Question
from pvlm.answer.residence import Residence
from pvlm.answer.statistics import Timeline
from pvlm.errors import EngineStateError
from pvlm.results import Answer, Chunk
from pvlm.runtime.loops import LoopThread, call, check_loop, check_no_loop, running_loop
from pvlm.telemetry.recorder import Recorder
from pvlm.telemetry.reporter import Reporter
from pvlm.video import check_source


@dataclass(frozen=True)
class Entrance:
    """The way of a stream into its engine.

    ``loop``: the event loop on which the engine is open, or None. ``enter``: returns where the answer is written, and
    whether that was opened for this answer alone.
    """

    loop: Callable[[], AbstractEventLoop | None]
    enter: Callable[[], Awaitable[tuple[Residence, bool]]]


class AnswerStream:
    """An answer as it is written: an async context manager, and in it an async iterator of `Chunk`. In a thread without
    an event loop it is a plain context manager and iterator.

    Leaving it early ends the session at both models. The caller waits for that at most `EngineConfig.close_timeout_s`.
    A complete answer is free at both models at once, and its chunks can still be read. `answer` is the whole answer,
    once the chunks are exhausted. A stream that is being written and that nobody reads for
    `EngineConfig.stream_idle_timeout_s` ends with `StreamIdle`.
    """

    def __init__(
        self,
        entrance: Entrance,
        question: Question,
        on_progress: Callable[[str, float], None],
        reporter: Reporter,
        recorder: Recorder | None = None,
    ) -> None:
        self._entrance = entrance
        self._question = question
        self._on_progress = on_progress
        self._reporter = reporter
        self._recorder = recorder
        self._timeline = Timeline()
        self._residence: Residence | None = None
        self._alone = False
        """The residence was opened for this answer."""
        self._life: Life | None = None
        self._loop: AbstractEventLoop | None = None
        self._thread: LoopThread | None = None
        """Where a thread without an event loop has opened the engine for this answer."""

    async def __aenter__(self) -> Self:
        if self._loop is not None:
            raise EngineStateError("a stream can be entered once: ask again for another answer")
        self._loop = running_loop()
        self._timeline.reach("asked")
        try:
            for media in self._question.media:
                if media.sight is None:
                    check_source(media.source)  # before any model is loaded
            self._residence, self._alone = await self._entrance.enter()
            self._life = Life(
                self._residence, self._question, self._timeline, self._on_progress, self._reporter, self._recorder
            )
            await self._life.opened()
        except BaseException as error:
            if self._life is None:
                report_end(self._reporter, error)
            await self._leave(error)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._check_entered()
        await self._leave(error)

    async def _leave(self, error: BaseException | None) -> None:
        """The engine's task does the work, and is asked to at once. What follows only waits, and may be interrupted."""
        if self._residence is None:
            return
        if self._life is not None:
            self._life.leave(error)
        if self._alone:
            self._residence.close()
            await self._residence.closed()
        elif self._life is not None:
            with anyio.move_on_after(self._residence.pair.config.close_timeout_s, shield=True):
                await self._life.ended.wait()

    def __aiter__(self) -> AsyncIterator[Chunk]:
        return self

    async def __anext__(self) -> Chunk:
        life = self._check_entered()
        assert life.writer is not None
        return await life.writer.read()

    @property
    def answer(self) -> Answer:
        """The whole answer. Raises EngineStateError before the last chunk has been taken."""
        if (
            self._life is None
            or self._life.writer is None
            or not isinstance(answer := self._life.writer.outcome, Answer)
        ):
            raise EngineStateError("the answer is not complete: iterate over the stream to its end first")
        return answer

    def _check_entered(self) -> Life:
        if self._life is None or self._loop is None:
            raise EngineStateError("this stream is not open: `async with engine.stream(...) as chunks`")
        check_loop(self._loop)
        return self._life

    # ---- in a thread without an event loop ------------------------------------------------------------------------

    def __enter__(self) -> Self:
        check_no_loop("`with` of a stream", "async with engine.stream(...)")
        loop = self._entrance.loop()
        if loop is None:
            self._thread = LoopThread()
            loop = self._thread.loop
        try:
            return call(loop, self.__aenter__())
        except BaseException:
            self._close_thread()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            call(self._entered_loop(), self.__aexit__(kind, error, traceback))
        finally:
            self._close_thread()

    def __iter__(self) -> Iterator[Chunk]:
        return self

    def __next__(self) -> Chunk:
        try:
            return call(self._entered_loop(), self.__anext__())
        except StopAsyncIteration:
            raise StopIteration from None

    def _entered_loop(self) -> AbstractEventLoop:
        check_no_loop("a plain loop over a stream", "async for")
        if self._loop is None:
            raise EngineStateError("this stream is not open: `with engine.stream(...) as chunks`")
        return self._loop

    def _close_thread(self) -> None:
        thread, self._thread = self._thread, None
        if thread is not None:
            thread.close()
