"""The writer of one answer: turns the coordinator's commands into chunks, and in the end into the `Answer`."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

import anyio

from pvlm.answer.detokenizer import TextStream
from pvlm.answer.statistics import Timeline
from pvlm.coordination.events import Command, Emit, Fail, Finish, PrefillFinished, Progress
from pvlm.errors import EngineStateError, ModelError, PromptError, PvlmError, RemoteTraceback, TargetLost
from pvlm.log import log
from pvlm.results import Answer, AnswerStats, Chunk
from pvlm.telemetry.recorder import Recorder
from pvlm.telemetry.reporter import AnswerReport
from pvlm_protocols.messages import FinishReason


class Writer:
    """Takes commands, and writes chunks. ``outcome``: the answer or its error, None while it is being written."""

    def __init__(
        self,
        session: int,
        text: TextStream,
        timeline: Timeline,
        statistics: Callable[[], AnswerStats],
        on_progress: Callable[[str, float], None],
        report: AnswerReport | None,
        recorder: Recorder | None,
    ) -> None:
        """``statistics``: makes the figures of the finished answer."""
        self.outcome: Answer | Exception | None = None
        self._session = session
        self._text = text
        self._timeline = timeline
        self._statistics = statistics
        self._on_progress = on_progress
        self._report = report
        self._recorder = recorder
        self._chunks: deque[Chunk] = deque()
        self._changed = anyio.Event()
        self._left = False
        self._readers = 0
        self._read_s = time.monotonic()

    def take(self, command: Command) -> bool:
        """Carry out a command of the coordinator. Return whether a stop string has ended the answer."""
        if self.outcome is not None:
            return False
        match command:
            case Emit():
                return self._emit(command)
            case Progress(fraction):
                self._on_progress("prefill", fraction)
            case PrefillFinished():
                self._timeline.reach("prefilled")
                self._on_progress("prefill", 1.0)
            case Finish(reason):
                if text := self._text.flush():
                    self._give(text, ())
                self._complete(reason)
            case Fail():
                self.fail(_error(command))
        return False

    def fail(self, error: Exception) -> None:
        """End the answer with an error, unless it is complete. Its reader gets what was written first."""
        if self.outcome is None:
            self.outcome = error
            self._changed.set()

    def close(self) -> None:
        """Drop what nobody has read."""
        self._left = True
        self._chunks.clear()
        self._changed.set()

    async def read(self) -> Chunk:
        """Return the next chunk. Raises the answer's error after the last one, and StopAsyncIteration if it has none.

        Raises EngineStateError after `close`.
        """
        self._readers += 1
        try:
            while not self._chunks:
                if self._left:
                    raise EngineStateError("this stream was left: read it inside its `async with`")
                if isinstance(self.outcome, Exception):
                    raise self.outcome from self.outcome.__cause__
                if self.outcome is not None:
                    raise StopAsyncIteration
                if self._changed.is_set():
                    self._changed = anyio.Event()
                await self._changed.wait()
            return self._chunks.popleft()
        finally:
            self._readers -= 1
            self._read_s = time.monotonic()

    def unread_s(self) -> float:
        """For how long nobody has read, in seconds; 0 while a reader waits."""
        return 0.0 if self._readers else time.monotonic() - self._read_s

    def _emit(self, emitted: Emit) -> bool:
        text, count = "", 0
        while count < len(emitted.tokens) and not self._text.stopped:
            text += self._text.push(emitted.tokens[count])
            count += 1
        self._timeline.written(emitted, count)
        self._give(text, emitted.tokens[:count])
        if self._text.stopped:
            self._complete("stop")
        return self._text.stopped

    def _give(self, text: str, tokens: tuple[int, ...]) -> None:
        if not self._left:
            self._chunks.append(Chunk(text, tokens))
            self._changed.set()
        if self._report is not None and tokens:
            self._report.tokens(len(tokens))

    def _complete(self, reason: FinishReason) -> None:
        self._timeline.reach("finished")
        self.outcome = Answer(
            text=self._text.text,
            tokens=tuple(self._text.tokens),
            finish_reason=reason,
            stats=self._statistics(),
        )
        if self._recorder is not None:
            self._recorder.ended(self.outcome)
        self._log(self.outcome.stats, reason)
        self._changed.set()

    def _log(self, stats: AnswerStats, reason: FinishReason) -> None:
        log.info(
            "answered",
            session=self._session,
            method=stats.method,
            new_tokens=stats.new_tokens,
            finish_reason=reason,
            total_s=round(stats.total_s, 3),
            prefill_s=round(stats.prefill_s, 3),
            tokens_per_second=stats.tokens_per_second and round(stats.tokens_per_second, 1),
            acceptance_rate=stats.acceptance_rate and round(stats.acceptance_rate, 3),
            target_passes=stats.target_passes,
        )


def _error(failed: Fail) -> PvlmError:
    """The error that the caller sees, with the worker's own traceback as its cause."""
    error: PvlmError
    match failed.error:
        case "PromptError":
            error = PromptError(failed.message)
        case "TargetLost":
            error = TargetLost(f"the target was lost in the middle of an answer: {failed.message}")
        case _:
            error = ModelError(f"the target failed: {failed.error}: {failed.message}")
    if failed.traceback:
        error.__cause__ = RemoteTraceback(failed.traceback)
    return error
