"""One answer: from a video and a question to a session, and from its commands to text, tokens and statistics."""

from __future__ import annotations

import math
import time
import zlib
from asyncio import CancelledError
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from types import TracebackType
from typing import TYPE_CHECKING, Self

import anyio
import anyio.to_thread
import numpy as np
import structlog

from pvlm.answer.detokenizer import TextStream
from pvlm.answer.request import answer_pruning, answer_schedule, draft_opening, opening, resolve_method
from pvlm.config import AnswerOptions, check_question
from pvlm.coordination.coordinator import Coordinator
from pvlm.coordination.events import Cancelled, Command, Emit, Fail, Finish, PrefillFinished, Progress
from pvlm.errors import (
    EngineBusy,
    EngineStateError,
    ModelError,
    OptionError,
    PromptError,
    PvlmError,
    RemoteTraceback,
    TargetLost,
    VideoError,
)
from pvlm.results import Answer, AnswerStats, Chunk, FinishReason, acceptance, median_or_none, ratio_or_none
from pvlm.runtime.pair import Runtime
from pvlm.runtime.session import LiveSession
from pvlm.telemetry.metrics import REQUEST_LATENCY, REQUESTS
from pvlm.telemetry.recorder import Recorded, Recorder
from pvlm.telemetry.reporter import AnswerReport, Reporter
from pvlm.video import Video, check_source, read_video
from pvlm_protocols.backend import BackendError, Processor
from pvlm_protocols.codec import MAX_ARRAY_BYTES
from pvlm_protocols.messages import VideoFrames

if TYPE_CHECKING:
    from pvlm.video.reading import VideoSource

log = structlog.get_logger()


class AnswerStream:
    """An answer as it is written: an async context manager, and in it an async iterator of `Chunk`.

    Leaving it early ends the session at both models. `answer` is the whole, once the chunks are exhausted.
    """

    def __init__(
        self,
        runtime: AbstractAsyncContextManager[Runtime],
        video: VideoSource | None,
        question: str,
        options: AnswerOptions,
        on_progress: Callable[[str, float], None],
        reporter: Reporter,
        recorder: Recorder | None = None,
    ) -> None:
        check_question(question)
        if video is None:
            for name in ("num_frames", "fps", "start", "end"):
                if (value := getattr(options, name)) is not None:
                    raise OptionError(f"{name}={value!r} needs a video, and this question is about none")
        self._runtime_context = runtime
        self._source = video
        self._question = question
        self._options = options
        self._on_progress = on_progress
        self._reporter = reporter
        self._recorder = recorder
        self._video: Video | None = None
        self._log = log.bind()
        self._stack = AsyncExitStack()
        self._session: LiveSession | None = None
        self._error: PvlmError | None = None
        self._finish: FinishReason | None = None
        self._answer: Answer | None = None
        self._origins: list[str] = []
        self._first_token_s = math.nan
        self._report: AnswerReport | None = None
        self._prefilled_s = math.nan
        self._finished_s = math.nan

    async def __aenter__(self) -> Self:
        self._started_s = time.perf_counter()
        await self._stack.__aenter__()
        try:
            if self._source is not None:
                check_source(self._source)  # before any model is loaded
            runtime = await self._stack.enter_async_context(self._runtime_context)
            waiting_s = time.perf_counter()
            await self._stack.enter_async_context(runtime.turn())  # what follows takes memory: frames, then caches
            self._waiting_s = time.perf_counter() - waiting_s
            await self._start(runtime)
        except BaseException as error:
            self._tell_end(error)
            await self._stack.aclose()  # no scope around it: a runtime of its own ends its task group in there
            raise
        return self

    async def _start(self, runtime: Runtime) -> None:
        await runtime.target_there()
        config, options = runtime.config, self._options
        self._method = resolve_method(runtime, options)
        reading_s = time.perf_counter()
        if self._source is not None:
            self._video = await read_video(
                self._source,
                num_frames=options.num_frames,
                fps=options.fps,
                start=options.start,
                end=options.end,
                defaults=runtime.target_processor.frame_defaults,
                reader=config.video_reader,
                timeout_s=config.decode_timeout_s,
            )
        frames = await self._resized(runtime.target_processor)
        draft_frames = frames
        if self._method != "ar" and runtime.draft_processor is not None:
            draft_frames = await self._resized(runtime.draft_processor)
        self._video_s = time.perf_counter() - reading_s
        self._text = TextStream(runtime.target_processor.decode, options.stop_strings)
        self._chunks, self._received = anyio.create_memory_object_stream[Chunk](math.inf)
        self._stack.callback(self._chunks.close)
        self._stack.callback(self._received.close)
        self._opened_s = time.perf_counter()
        await runtime.target_there()  # it may have been lost meanwhile
        schedule = answer_schedule(runtime, self._method, options)
        pruning = answer_pruning(config, self._method, options)
        policy = runtime.window_policy(schedule, pruning, options.window or config.window)
        self._opening = opening(runtime, self._question, frames, options, schedule, pruning, policy)
        draft = None
        if self._method != "ar":
            draft = draft_opening(runtime, draft_frames, self._opening)
        self._coordinator = Coordinator(self._opening, policy, draft, runtime.draft_away if draft else "")
        self._log = self._log.bind(session=self._opening.session)
        self._runtime = runtime
        if self._recorder is not None:
            self._recorder.began(
                Recorded(
                    opening=self._opening,
                    with_draft=draft is not None,
                    frame_indices=() if self._video is None else self._video.indices,
                    frame_size=(0, 0) if self._video is None else self._video.frames.shape[1:3],
                    processor=runtime.target_processor,
                    models=runtime.models,
                )
            )
        if (metrics := self._reporter.metrics) is not None:
            self._report = AnswerReport(metrics, self._coordinator.counts, self._started_s)
        self._session = runtime.open(self._coordinator, self._on_command, self._report, self._recorder)

    async def _resized(self, processor: Processor) -> VideoFrames | None:
        if self._video is None:
            return None
        video = self._video

        def resize() -> tuple[np.ndarray, int]:
            pixels = np.ascontiguousarray(processor.resize(video.frames))
            return pixels, zlib.crc32(pixels.data)

        try:
            pixels, checksum = await anyio.to_thread.run_sync(resize)
        except BackendError as error:
            raise PromptError(str(error)) from error
        if pixels.nbytes > MAX_ARRAY_BYTES:
            raise OptionError(
                f"{len(pixels)} frames of {pixels.shape[2]}x{pixels.shape[1]} take {pixels.nbytes} bytes, more than "
                f"the limit of {MAX_ARRAY_BYTES}: take fewer (num_frames)"
            )
        return VideoFrames(pixels=pixels, timestamps_s=video.timestamps_s, checksum=checksum)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._session is not None
        self._tell_end(self._error or error)
        if not self._coordinator.done:
            self._session.handle(Cancelled())
        self._received.close()
        await self._runtime.close(self._session)
        await self._stack.aclose()

    def __aiter__(self) -> AsyncIterator[Chunk]:
        return self

    async def __anext__(self) -> Chunk:
        try:
            return await self._received.receive()
        except anyio.EndOfStream:
            if self._error is not None:
                raise self._error from self._error.__cause__
            raise StopAsyncIteration from None

    @property
    def answer(self) -> Answer:
        """The whole answer. Raises EngineStateError before the last chunk has been taken."""
        if self._answer is None:
            raise EngineStateError("the answer is not complete: iterate over the stream to its end first")
        return self._answer

    def _tell_end(self, error: BaseException | None) -> None:
        """Log and count how the answer ends. ``error``: what it ends with, if it is the caller's own too."""
        outcome: str
        if self._answer is not None:
            outcome = self._answer.finish_reason
            self._reporter.observe(REQUEST_LATENCY, self._answer.stats.total_s)
        elif isinstance(error, CancelledError):
            outcome = "cancelled"
            self._log.info("answer_cancelled", reason=str(error))
        elif isinstance(error, PvlmError) or (error is not None and self._session is None):
            outcome = type(error).__name__
            self._tell_failure(error)
        else:
            outcome = "left"
            self._log.info("answer_left")
        if self._report is not None:
            self._report.tell()
        self._reporter.add(REQUESTS, outcome=outcome)

    def _tell_failure(self, error: BaseException) -> None:
        match error:
            case VideoError():
                self._reporter.fault("video_refused", path=error.path, reason=error.reason)
            case EngineBusy():
                self._reporter.fault("engine_busy", reason=str(error))
            case _:
                session = None if self._session is None else self._session.id
                self._reporter.fault("answer_failed", session=session, error=type(error).__name__, reason=str(error))

    # ---- commands of the coordinator ------------------------------------------------------------------------------

    def _on_command(self, command: Command) -> None:
        if self._finish is not None or self._error is not None:
            return
        match command:
            case Emit():
                self._emit(command)
            case Progress(fraction):
                self._on_progress("prefill", fraction)
            case PrefillFinished():
                self._prefilled_s = time.perf_counter()
                self._on_progress("prefill", 1.0)
            case Finish(reason):
                if text := self._text.flush():
                    self._give(text, ())
                self._complete(reason)
            case Fail():
                self._fail(command)

    def _emit(self, emitted: Emit) -> None:
        if not self._text.tokens:
            self._first_token_s = time.perf_counter()
        text = ""
        for index, token in enumerate(emitted.tokens):
            text += self._text.push(token)
            self._origins.append(_origin(index, emitted))
            if self._text.stopped:
                self._give(text, emitted.tokens[: index + 1])
                self._complete("stop")
                assert self._session is not None
                self._session.handle(Cancelled())
                return
        self._give(text, emitted.tokens)

    def _give(self, text: str, tokens: tuple[int, ...]) -> None:
        """To the caller."""
        self._chunks.send_nowait(Chunk(text, tokens))
        if self._report is not None and tokens:
            self._report.tokens(len(tokens))

    def _complete(self, reason: FinishReason) -> None:
        self._finish = reason
        self._finished_s = time.perf_counter()
        self._answer = Answer(
            text=self._text.text,
            tokens=tuple(self._text.tokens),
            finish_reason=reason,
            stats=self._stats(),
        )
        if self._recorder is not None:
            self._recorder.ended(self._answer)
        stats = self._answer.stats
        self._log.info(
            "answered",
            method=stats.method,
            new_tokens=stats.new_tokens,
            finish_reason=reason,
            total_s=round(stats.total_s, 3),
            prefill_s=round(stats.prefill_s, 3),
            tokens_per_second=stats.tokens_per_second and round(stats.tokens_per_second, 1),
            acceptance_rate=stats.acceptance_rate and round(stats.acceptance_rate, 3),
            target_passes=stats.target_passes,
        )
        self._chunks.close()

    def _fail(self, failed: Fail) -> None:
        match failed.error:
            case "PromptError":
                self._error = PromptError(failed.message)
            case "TargetLost":
                self._error = TargetLost(f"the target was lost in the middle of an answer: {failed.message}")
            case _:
                self._error = ModelError(f"the target failed: {failed.error}: {failed.message}")
        if failed.traceback:
            self._error.__cause__ = RemoteTraceback(failed.traceback)
        self._chunks.close()

    def _stats(self) -> AnswerStats:
        counts = self._coordinator.counts
        decode_s = self._finished_s - self._prefilled_s
        pruning = self._opening.pruning
        sampling = self._opening.sampling
        return AnswerStats(
            method=self._method,
            total_s=self._finished_s - self._started_s,
            waiting_s=self._waiting_s,
            video_s=self._video_s,
            prefill_s=self._prefilled_s - self._opened_s,
            decode_s=decode_s,
            time_to_first_token_s=self._first_token_s - self._started_s,
            new_tokens=len(self._text.tokens),
            tokens_per_second=ratio_or_none(len(self._text.tokens), decode_s),
            target_passes=counts.target_passes,
            target_pass_ms=median_or_none(counts.target_pass_ms),
            target_passes_ms=tuple(zip(counts.target_pass_tokens, counts.target_pass_ms, strict=True)),
            target_idle_ms=median_or_none(counts.idle_ms),
            coordination_ms=tuple(counts.coordination_ms),
            drafted_tokens=counts.drafted_tokens,
            draft_token_ms=median_or_none(counts.draft_token_ms),
            accepted_tokens=counts.accepted_tokens,
            rejected_tokens=counts.rejected_tokens,
            **acceptance(counts),
            rollbacks=counts.rollbacks,
            rests=counts.rests,
            origins="".join(self._origins),
            windows=tuple(counts.windows),
            dropped_windows=counts.dropped_windows,
            prompt_tokens=counts.prompt_tokens,
            video_tokens=counts.video_tokens,
            kept_video_tokens=counts.kept_video_tokens,
            prune=pruning.method if self._method != "ar" else "none",
            draft_prefill_ms=counts.prefill_ms.get("draft"),
            frame_indices=self._video.indices if self._video is not None else (),
            source_frames=self._video.source_frames if self._video is not None else 0,
            source_fps=self._video.source_fps if self._video is not None else None,
            seed=self._options.seed,
            coupling=sampling.coupling,
            draft_lost=counts.draft_lost,
            draft_rejoins=counts.draft_rejoins,
            target_recoveries=counts.target_recoveries,
        )


def _origin(index: int, emitted: Emit) -> str:
    if index < emitted.accepted:
        return "d"
    return "c" if emitted.corrected and index == emitted.accepted else "t"
