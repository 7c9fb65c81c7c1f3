"""The life of one answer: a place in the engine, the video, the session, chunks for the caller, and the end."""

from __future__ import annotations

from asyncio import CancelledError
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Self

import anyio
import structlog

from pvlm.answer.admission import Admission
from pvlm.answer.detokenizer import TextStream
from pvlm.answer.request import Question, Request, build_request, resized_frames, resolve_method
from pvlm.answer.statistics import Timeline, answer_stats
from pvlm.answer.writer import Writer
from pvlm.coordination.coordinator import Coordinator
from pvlm.coordination.events import Cancelled, Command, StopAfter
from pvlm.errors import EngineBusy, EngineStateError, PvlmError, VideoError
from pvlm.results import Answer, Chunk
from pvlm.runtime.pair import Pair
from pvlm.runtime.session import LiveSession
from pvlm.telemetry.metrics import REQUEST_LATENCY, REQUESTS
from pvlm.telemetry.recorder import Recorded, Recorder
from pvlm.telemetry.reporter import AnswerReport, Reporter
from pvlm.video import Video, check_source, read_video

log = structlog.get_logger()

Enter = Callable[[AsyncExitStack], Awaitable[tuple[Pair, Admission]]]
"""Returns the models that answer. What it opens for this answer alone, it leaves to the stack to close."""


class AnswerStream:
    """An answer as it is written: an async context manager, and in it an async iterator of `Chunk`.

    Leaving it early ends the session at both models. `answer` is the whole answer, once the chunks are exhausted.
    """

    def __init__(
        self,
        enter: Enter,
        question: Question,
        on_progress: Callable[[str, float], None],
        reporter: Reporter,
        recorder: Recorder | None = None,
    ) -> None:
        self._enter = enter
        self._question = question
        self._on_progress = on_progress
        self._reporter = reporter
        self._recorder = recorder
        self._timeline = Timeline()
        self._stack = AsyncExitStack()
        self._report: AnswerReport | None = None
        self._session: LiveSession | None = None
        self._writer: Writer | None = None

    async def __aenter__(self) -> Self:
        self._timeline.reach("asked")
        await self._stack.__aenter__()
        try:
            if self._question.video is not None:
                check_source(self._question.video)  # before any model is loaded
            pair, admission = await self._enter(self._stack)
            self._timeline.reach("queued")
            await self._stack.enter_async_context(admission.turn())  # before frames and caches take memory
            self._timeline.reach("admitted")
            await self._start(pair)
        except BaseException as error:
            self._report_end(error)
            await self._stack.aclose()  # outside any scope: an engine of its own ends its task group here
            raise
        return self

    async def _start(self, pair: Pair) -> None:
        await pair.target_there()
        config, options = pair.config, self._question.options
        method = resolve_method(config, options)
        self._timeline.reach("reading")
        video = await self._read(pair)
        frames = await resized_frames(video, pair, method)
        self._timeline.reach("opened")
        await pair.target_there()  # it may have been lost in the meantime
        request = build_request(config, options, pair, self._question.text, frames)
        coordinator = Coordinator(
            request.target, request.policy, request.draft, pair.draft_away if method != "ar" else ""
        )
        if self._recorder is not None:
            self._recorder.began(_recorded(pair, request, video))
        if (metrics := self._reporter.metrics) is not None:
            self._report = AnswerReport(metrics, self._timeline.at_s("asked"))
        self._writer = Writer(
            request.target.session,
            TextStream(pair.target_processor.decode, options.stop_strings),
            self._timeline,
            lambda: answer_stats(self._timeline, coordinator.counts, request, video, options.seed),
            self._on_progress,
            self._report,
            self._recorder,
        )
        self._session = pair.open(coordinator, self._on_command, self._report, self._recorder)
        self._stack.push_async_callback(pair.close, self._session)
        self._stack.callback(self._writer.close)

    async def _read(self, pair: Pair) -> Video | None:
        if self._question.video is None:
            return None
        options = self._question.options
        return await read_video(
            self._question.video,
            num_frames=options.num_frames,
            fps=options.fps,
            start=options.start,
            end=options.end,
            defaults=pair.target_processor.frame_defaults,
            reader=pair.config.video_reader,
            timeout_s=pair.config.decode_timeout_s,
        )

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._session is not None
        self._report_end(error)
        if not self._session.coordinator.done:
            self._session.handle(Cancelled())
        await self._stack.aclose()

    def __aiter__(self) -> AsyncIterator[Chunk]:
        return self

    async def __anext__(self) -> Chunk:
        assert self._writer is not None
        try:
            return await self._writer.chunks.receive()
        except anyio.EndOfStream:
            if isinstance(error := self._writer.outcome, PvlmError):
                raise error from error.__cause__
            raise StopAsyncIteration from None

    @property
    def answer(self) -> Answer:
        """The whole answer. Raises EngineStateError before the last chunk has been taken."""
        if self._writer is None or not isinstance(self._writer.outcome, Answer):
            raise EngineStateError("the answer is not complete: iterate over the stream to its end first")
        return self._writer.outcome

    def _on_command(self, command: Command) -> None:
        assert self._writer is not None
        if self._writer.take(command):  # a stop string, which no actor looks for
            assert self._session is not None
            self._session.handle(StopAfter(len(self.answer.tokens)))

    # ---- how it ends ----------------------------------------------------------------------------------------------

    def _report_end(self, error: BaseException | None) -> None:
        """Log and count how the answer ends. ``error``: the caller's, or what kept the answer from starting."""
        session = None if self._session is None else self._session.id
        outcome = None if self._writer is None else self._writer.outcome
        if isinstance(outcome, PvlmError):
            error = outcome
        kind: str
        if isinstance(outcome, Answer):
            kind = outcome.finish_reason
            self._reporter.observe(REQUEST_LATENCY, outcome.stats.total_s)
        elif isinstance(error, CancelledError):
            kind = "cancelled"
            self._info("answer_cancelled", reason=str(error))
        elif isinstance(error, PvlmError) or (error is not None and session is None):
            kind = type(error).__name__
            self._report_failure(error, session)
        else:
            kind = "left"
            self._info("answer_left")
        if self._report is not None:
            self._report.tell()
        self._reporter.add(REQUESTS, outcome=kind)

    def _report_failure(self, error: BaseException, session: int | None) -> None:
        match error:
            case VideoError():
                self._reporter.fault("video_refused", path=error.path, reason=error.reason)
            case EngineBusy():
                self._reporter.fault("engine_busy", reason=str(error))
            case _:
                self._reporter.fault("answer_failed", session=session, error=type(error).__name__, reason=str(error))

    def _info(self, event: str, **details: str) -> None:
        (log if self._session is None else log.bind(session=self._session.id)).info(event, **details)


def _recorded(pair: Pair, request: Request, video: Video | None) -> Recorded:
    return Recorded(
        opening=request.target,
        with_draft=request.draft is not None,
        frame_indices=() if video is None else video.indices,
        frame_size=(0, 0) if video is None else video.frames.shape[1:3],
        processor=pair.target_processor,
        models=pair.models,
    )
