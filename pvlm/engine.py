"""The engine: the object that an application holds."""

from __future__ import annotations

from asyncio import AbstractEventLoop
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from enum import Enum, auto
from os import PathLike
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, Unpack

import anyio

from pvlm.answer.batch import AnswerRequest, Given, Outcome, outcomes
from pvlm.answer.clip import Clip
from pvlm.answer.question import Question
from pvlm.answer.residence import Residence
from pvlm.answer.stream import AnswerStream, Entrance
from pvlm.config import EngineConfig, answer_options, engine_config
from pvlm.errors import EngineStateError, OptionError
from pvlm.redaction import shown
from pvlm.results import Answer
from pvlm.runtime.loops import LoopThread, call, check_no_loop
from pvlm.runtime.pair import Pair
from pvlm.runtime.supervisor import ActorHealth
from pvlm.settings.keywords import AnswerKeywords, EngineKeywords, FrameKeywords, PretrainedKeywords
from pvlm.telemetry.metrics import Metrics
from pvlm.telemetry.observers import Observers, OnProgress
from pvlm.telemetry.recorder import Recorder
from pvlm.telemetry.reporter import Reporter
from pvlm_protocols.backend import ModelInfo, Role

if TYPE_CHECKING:
    from pvlm.video.reading import VideoSource


class EngineState(Enum):
    """UNOPENED -> OPEN -> CLOSED."""

    UNOPENED = auto()
    OPEN = auto()
    CLOSED = auto()


class Engine:
    """Answers questions about videos.

    ::

        answer = await Engine.create().answer("clip.mp4", "What happens in the video?")

    opens the models, answers, and closes them again. To keep them warm for many answers::

        async with Engine.create(target="llava-hf/llava-onevision-qwen2-7b-ov-hf", draft="...") as engine:
            answer = await engine.answer("clip.mp4", "What happens in the video?")

    It runs on asyncio, not on trio. Any task of its event loop may open it, ask, and close it. In threads without an
    event loop, ``with engine``, `answer_sync` and ``with engine.stream(...)`` do the same, whether it is open or not.
    """

    def __init__(
        self, config: EngineConfig, on_progress: OnProgress | None = None, metrics: Metrics | None = None
    ) -> None:
        """Use `create`."""
        self.config = config
        self._observers = Observers(on_progress, metrics)
        self._reporter = Reporter(self._observers.metrics)
        self._residence: Residence | None = None
        self._closed = False
        self._thread: LoopThread | None = None
        """Where ``with engine`` has opened it."""

    @classmethod
    def create(
        cls,
        config: EngineConfig | Mapping[str, Any] | None = None,
        *,
        on_progress: OnProgress | None = None,
        metrics: Metrics | None = None,
        **settings: Unpack[EngineKeywords],
    ) -> Self:
        """An engine from a configuration, a mapping, or keywords (see `EngineConfig`). Does no I/O.

        ``metrics``: receives the engine's counts and times, for instance a
        `pvlm.telemetry.prometheus.PrometheusMetrics`.

        Raises ConfigError on unknown keys and invalid settings.
        """
        return cls(engine_config(config, **settings), on_progress, metrics)

    @classmethod
    def from_pretrained(
        cls,
        target: str | PathLike[str],
        *,
        draft: str | PathLike[str] | None = None,
        on_progress: OnProgress | None = None,
        metrics: Metrics | None = None,
        **settings: Unpack[PretrainedKeywords],
    ) -> Self:
        """An engine for a target and, if given, a draft: checkpoint directories or hub names. Does no I/O.

        Otherwise as `create`.
        """
        return cls.create(target=target, draft=draft, on_progress=on_progress, metrics=metrics, **settings)

    @property
    def state(self) -> EngineState:
        """Whether the engine is unopened, open or closed."""
        residence = self._residence
        if self._closed or (residence is not None and residence.over):
            return EngineState.CLOSED
        return EngineState.UNOPENED if residence is None else EngineState.OPEN

    @property
    def models(self) -> dict[Role, ModelInfo]:
        """The loaded models, by role; empty if the engine is not open."""
        return {} if (pair := self._pair) is None else pair.models

    @property
    def processes(self) -> dict[Role, int]:
        """Process ids of the running models on this host, by role (with transport ``inproc``, this process's own)."""
        return {} if (pair := self._pair) is None else pair.processes

    async def health(self, timeout_s: float = 5.0) -> dict[Role, ActorHealth]:
        """The health of each model, by role. Waits at most ``timeout_s``. Empty if the engine is not open.

        Raises EngineStateError on another event loop than the engine's.
        """
        if (residence := self._residence) is None or not residence.running:
            return {}
        residence.check()
        return await residence.pair.health(timeout_s)

    @property
    def _pair(self) -> Pair | None:
        """The running models; None if the engine is not open, or still loads them."""
        residence = self._residence
        return residence.pair if residence is not None and residence.running else None

    # ---- life cycle -----------------------------------------------------------------------------------------------

    async def open(self) -> None:
        """Load the models, where ``async with`` has no place, as in a notebook; `aclose` ends them.

        Raises ModelError, and EngineStateError if the engine was opened or closed before.
        """
        await self.__aenter__()

    async def __aenter__(self) -> Self:
        """Load the models. Raises ModelError."""
        if self.state is not EngineState.UNOPENED:
            raise EngineStateError(
                f"this engine is {self.state.name} and cannot be opened again: make another with Engine.create()"
            )
        self._residence = self._new_residence(stays=True)
        await self._residence.opened()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None = None,
        error: BaseException | None = None,
        traceback: TracebackType | None = None,
    ) -> None:
        if (residence := self._residence) is not None:
            await residence.aclose()
        self._closed = True

    async def aclose(self) -> None:
        """Close the engine. Answers that are being written end with an error.

        A second call does nothing, and an unopened engine can be closed. Raises EngineStateError on another event loop
        than the engine's.
        """
        await self.__aexit__()

    def __enter__(self) -> Self:
        """Load the models, on an event loop in a thread of its own. Raises ModelError."""
        check_no_loop("`with engine`", "async with engine")
        thread = LoopThread()
        try:
            call(thread.loop, self.__aenter__())
        except BaseException:
            thread.close()
            raise
        self._thread = thread
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        thread, self._thread = self._thread, None
        if thread is not None:
            try:
                call(thread.loop, self.__aexit__(kind, error, traceback))
            finally:
                thread.close()

    # ---- answers --------------------------------------------------------------------------------------------------

    async def answer(
        self,
        video: VideoSource | None = None,
        question: str | None = None,
        *,
        messages: Sequence[Mapping[str, Any]] | None = None,
        trace: Recorder | None = None,
        **options: Unpack[AnswerKeywords],
    ) -> Answer:
        """Answer a question about a video.

        ``video``: a path, encoded bytes, a ``(T, H, W, 3)`` uint8 array or tensor, a PIL image, or a list of PIL images
        of one size, used as the frames of a video. None: the question is about no video.
        ``messages``: a conversation, in place of a video and a question. It is a list of dicts with ``role``
        (``"system"``, ``"user"`` or ``"assistant"``) and ``content``: a text, or a list of parts ``{"type": "text",
        "text": ...}``, ``{"type": "video", "video": ...}`` and ``{"type": "image", "image": ...}``. Videos are given as
        above; an image is a path, encoded bytes, a PIL image, or a ``(H, W, 3)`` uint8 array. The last message is the
        user's, and its text is the question. Options that choose frames apply to each video.
        ``trace``: a `pvlm.trace.Trace`, which records what draft and target do.
        ``options``: see `AnswerOptions` (``max_new_tokens`` is another name of ``max_tokens``).

        Waits for its turn while `EngineConfig.max_sessions` answers are being written.

        Raises OptionError, VideoError, PromptError, ModelError, TargetLost, EngineBusy, EngineStateError.
        """
        async with self.stream(video, question, messages=messages, trace=trace, **options) as chunks:
            async for _ in chunks:
                pass
        return chunks.answer

    def stream(
        self,
        video: VideoSource | None = None,
        question: str | None = None,
        *,
        messages: Sequence[Mapping[str, Any]] | None = None,
        trace: Recorder | None = None,
        **options: Unpack[AnswerKeywords],
    ) -> AnswerStream:
        """`answer`, piece by piece: ``async with engine.stream(...) as chunks: async for chunk in chunks``.

        In a thread without an event loop: ``with engine.stream(...) as chunks: for chunk in chunks``.
        """
        self._check_not_closed()
        return self._stream(Question.asked(video, question, messages, answer_options(options)), trace)

    def _stream(self, question: Question, trace: Recorder | None) -> AnswerStream:
        entrance, observers = Entrance(self._loop, self._enter), self._observers
        return AnswerStream(entrance, question, observers.on_progress, self._reporter, observers.trace(trace))

    def watch(self, video: VideoSource, **frames: Unpack[FrameKeywords]) -> Clip:
        """A video for several questions: ``async with engine.watch("clip.mp4") as clip: await clip.answer("...")``.

        It is read once, and both models keep it until the clip is left. Questions about any video are answered from
        what was kept of it, where there is room; a watched one stays. ``frames``: ``num_frames``, ``fps``, ``start``
        and ``end``, as in `answer`.

        Raises OptionError. The engine must be open when the clip is entered.
        """
        self._check_not_closed()
        return Clip(video, answer_options(frames), self._open_residence, self._stream)

    def _open_residence(self) -> Residence:
        if (residence := self._residence) is None:
            raise EngineStateError("this engine is not open: `async with engine` first, then engine.watch(...)")
        residence.check()
        return residence

    def answer_sync(
        self,
        video: VideoSource | None = None,
        question: str | None = None,
        *,
        messages: Sequence[Mapping[str, Any]] | None = None,
        trace: Recorder | None = None,
        **options: Unpack[AnswerKeywords],
    ) -> Answer:
        """`answer` for threads without an event loop, whether the engine is open or not.

        Raises EngineStateError inside an event loop.
        """
        check_no_loop("answer_sync()", "await engine.answer(...)")
        if (loop := self._loop()) is not None:
            return call(loop, self.answer(video, question, messages=messages, trace=trace, **options))
        return anyio.run(lambda: self.answer(video, question, messages=messages, trace=trace, **options))

    def map(
        self,
        requests: Iterable[Given],
        *,
        concurrency: int | None = None,
        ordered: bool = True,
        **options: Unpack[AnswerKeywords],
    ) -> AsyncGenerator[Outcome, None]:
        """Answer many requests: ``async for outcome in engine.map([{"video": ..., "question": ...}, ...])``.

        ``requests``: see `AnswerRequest`; each may be a mapping, or the JSON text of one. A request is taken when it is
        begun, so they may be lazy. ``concurrency``: answers at a time; None, and at most: `EngineConfig.max_sessions`.
        ``ordered``: outcomes come in the order of the requests, else as they end. ``options``: of all answers; a
        request's own have precedence.

        A request that fails has its error as its outcome, and the others continue. Leaving the iteration cancels the
        answers that are being written.

        Raises OptionError, and EngineStateError on an engine that is not open or is closed meanwhile.
        """
        if self._pair is None:
            self._check_not_closed()
            raise EngineStateError("this engine is not open: `async with engine` first, then engine.map(...)")
        if concurrency is not None and (type(concurrency) is not int or concurrency < 1):
            raise OptionError(f"concurrency is {shown(concurrency)}: it must be an int (at least 1) or None")
        answer_options(options)
        most = self.config.max_sessions

        async def answer(request: AnswerRequest) -> Answer:
            return await self.answer(request.video, request.question, **request.keywords(options))

        return outcomes(answer, requests, concurrency=min(concurrency or most, most), ordered=ordered)

    def _check_not_closed(self) -> None:
        if self._residence is not None:
            self._residence.check_not_over()
        elif self._closed:
            raise EngineStateError("this engine is closed: make another with Engine.create()")

    def _loop(self) -> AbstractEventLoop | None:
        """The event loop of the open engine; None if it was never opened. Raises EngineStateError if it is closed."""
        self._check_not_closed()
        return None if self._residence is None else self._residence.loop

    async def _enter(self) -> tuple[Residence, bool]:
        """The open models. An engine that was never opened opens some for one answer alone."""
        self._check_not_closed()
        if self._residence is not None:
            self._residence.check()
            return self._residence, False
        residence = self._new_residence(stays=False)
        await residence.opened()
        return residence, True

    def _new_residence(self, *, stays: bool) -> Residence:
        progress = self._observers.on_progress
        return Residence(
            self.config, lambda role, fraction: progress(f"load {role}", fraction), self._reporter, stays=stays
        )
