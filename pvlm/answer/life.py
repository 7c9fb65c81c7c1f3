"""The life of one answer, in a task of the engine's: its turn, the video, the session, and how it ends."""

from __future__ import annotations

from asyncio import CancelledError
from collections.abc import Callable

import anyio
from anyio.lowlevel import checkpoint_if_cancelled

from pvlm.answer.circumstances import circumstances
from pvlm.answer.detokenizer import TextStream
from pvlm.answer.frames import read_turns
from pvlm.answer.question import Question
from pvlm.answer.request import Request, build_request, resolve_method
from pvlm.answer.residence import Residence
from pvlm.answer.statistics import Timeline, answer_stats
from pvlm.answer.writer import Writer
from pvlm.coordination.coordinator import Coordinator
from pvlm.coordination.events import Cancelled, Command, StopAfter
from pvlm.errors import EngineBusy, EngineStateError, ModelError, PvlmError, StreamIdle, VideoError, reason_of
from pvlm.log import log
from pvlm.results import Answer
from pvlm.runtime.pair import Pair
from pvlm.runtime.session import LiveSession
from pvlm.telemetry.metrics import REQUEST_LATENCY, REQUESTS
from pvlm.telemetry.recorder import Circumstances, Recorded, Recorder
from pvlm.telemetry.reporter import AnswerReport, Reporter
from pvlm.video import Video


class Life:
    """One answer. It holds its turn from the video's first frame until both models have freed its session.

    The caller reads `writer` and may `leave`. Neither is waited for: an answer that is complete frees its turn and its
    caches at once, and its chunks stay readable.
    """

    def __init__(
        self,
        residence: Residence,
        question: Question,
        timeline: Timeline,
        on_progress: Callable[[str, float], None],
        reporter: Reporter,
        recorder: Recorder | None,
    ) -> None:
        self.writer: Writer | None = None
        self.ended = anyio.Event()
        """Both models have freed the session, and another answer has the turn."""
        self._residence = residence
        self._question = question
        self._timeline = timeline
        self._on_progress = on_progress
        self._reporter = reporter
        self._recorder = recorder
        self._session: LiveSession | None = None
        self._opening = anyio.CancelScope()
        self._opened = anyio.Event()
        self._error: BaseException | None = None
        """What kept the session from being opened, or why the caller left."""

    async def opened(self) -> None:
        """Begin, and wait until the session is open. Raises what keeps it from that."""
        self._timeline.reach("queued")
        self._residence.start(self._live)
        await self._opened.wait()
        if self._session is None:
            assert self._error is not None
            raise self._error from self._error.__cause__

    def leave(self, error: BaseException | None) -> None:
        """Nobody reads the answer any more. ``error``: why, for the log."""
        if self._error is None:
            self._error = error
        if self.writer is not None:
            self.writer.close()
        if self._session is None:
            self._opening.cancel()
        elif not self._session.coordinator.done:
            self._session.handle(Cancelled())

    # ---- in the engine's task -------------------------------------------------------------------------------------

    async def _live(self) -> None:
        try:
            with self._opening:
                async with self._residence.admission.turn():  # before frames and caches take memory
                    self._timeline.reach("admitted")
                    self._session = await self._open(self._residence.pair)
                    with anyio.CancelScope(shield=True):  # from here on the session's events end it
                        await self._last(self._session)
        except Exception as error:
            self._fail(error)
        except CancelledError:  # not by the caller, whose scope ends above
            self._fail(EngineStateError("this engine was closed before the answer was complete"))
            raise
        finally:
            if self._session is None:
                report_end(self._reporter, self._error)
            self._opened.set()
            self.ended.set()

    async def _last(self, session: LiveSession) -> None:
        self._opened.set()
        try:
            await self._written(session)
        finally:
            assert self.writer is not None
            report_end(self._reporter, self._error, session.id, self.writer.outcome)
            await self._residence.pair.close(session)

    async def _open(self, pair: Pair) -> LiveSession:
        await pair.target_there()
        config, options = pair.config, self._question.options
        method = resolve_method(config, options)
        self._timeline.reach("reading")
        sights = self._residence.sights
        footage = await read_turns(
            self._question, pair, method, sights, lambda fraction: self._on_progress("read video", fraction)
        )
        self._timeline.reach("opened")
        await pair.target_there()  # it may have been lost in the meantime
        await checkpoint_if_cancelled()  # and the caller may have left while a thread was at work
        request = build_request(config, options, pair, footage.turns)
        coordinator = Coordinator(
            request.target, request.policy, request.draft, pair.draft_away if method != "ar" else ""
        )
        if self._recorder is not None:
            self._recorder.began(
                _recorded(pair, request, footage.videos, circumstances(config, self._question, self._timeline))
            )
        metrics = self._reporter.metrics
        report = None if metrics is None else AnswerReport(metrics, self._timeline.at_s("asked"))
        self.writer = Writer(
            request.target.session,
            TextStream(pair.target_processor.decode, options.stop_strings),
            self._timeline,
            lambda: answer_stats(self._timeline, coordinator.counts, request, footage.videos, options.seed),
            self._on_progress,
            report,
            self._recorder,
        )
        return pair.open(coordinator, self._on_command, report, self._recorder)

    async def _written(self, session: LiveSession) -> None:
        """Wait until the answer is complete, has failed, or was left. End one that nobody reads."""
        assert self.writer is not None
        limit_s = self._residence.pair.config.stream_idle_timeout_s
        while not session.done.is_set():
            with anyio.move_on_after(limit_s - self.writer.unread_s()):
                await session.done.wait()
            if self.writer.unread_s() >= limit_s and not session.done.is_set():
                written = len(self._timeline.origins)
                self._fail(
                    StreamIdle(
                        f"nobody read this stream for {limit_s:g} s (stream_idle_timeout_s), so its answer was ended "
                        f"after {written} tokens"
                    )
                )

    def _on_command(self, command: Command) -> None:
        assert self.writer is not None
        try:
            stopped = self.writer.take(command)
        except Exception as error:  # of the processor, which may be a plug-in's: this answer fails alone
            failed = ModelError(f"the target's processor failed: {reason_of(error)}")
            failed.__cause__ = error
            self._fail(failed)
            return
        if stopped:  # a stop string, which no actor looks for
            assert self._session is not None
            self._session.handle(StopAfter(len(self._timeline.origins)))

    def _fail(self, error: Exception) -> None:
        """End the answer with an error, unless it is complete."""
        if self._session is None:
            self._error = error
            return
        assert self.writer is not None
        self.writer.fail(error)
        self._session.handle(Cancelled())


def report_end(
    reporter: Reporter,
    error: BaseException | None,
    session: int | None = None,
    outcome: Answer | Exception | None = None,
) -> None:
    """Log and count how an answer has ended. ``error``: the caller's, or what kept the session from being opened."""
    bound = {} if session is None else {"session": session}
    if isinstance(outcome, Exception):
        error = outcome
    kind: str
    if isinstance(outcome, Answer):
        kind = outcome.finish_reason
        reporter.observe(REQUEST_LATENCY, outcome.stats.total_s)
    elif isinstance(error, CancelledError):
        kind = "cancelled"
        log.info("answer_cancelled", **bound, reason=str(error))
    elif isinstance(error, PvlmError) or (error is not None and session is None):
        kind = type(error).__name__
        _report_failure(reporter, error, session)
    else:
        kind = "left"
        log.info("answer_left", **bound)
    reporter.add(REQUESTS, outcome=kind)


def _report_failure(reporter: Reporter, error: BaseException, session: int | None) -> None:
    match error:
        case VideoError():
            reporter.fault("video_refused", path=error.path, reason=error.reason)
        case EngineBusy():
            reporter.fault("engine_busy", reason=str(error))
        case _:
            reporter.fault("answer_failed", session=session, error=type(error).__name__, reason=str(error))


def _recorded(pair: Pair, request: Request, videos: tuple[Video, ...], surroundings: Circumstances) -> Recorded:
    return Recorded(
        opening=request.target,
        with_draft=request.draft is not None,
        frame_indices=tuple(video.indices for video in videos),
        processor=pair.target_processor,
        models=pair.models,
        circumstances=surroundings,
    )
