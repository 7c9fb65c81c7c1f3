"""The engine: the object that an application holds."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from enum import Enum, auto
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import anyio

from pvlm.answer.admission import Admission
from pvlm.answer.request import Question
from pvlm.answer.stream import AnswerStream
from pvlm.config import EngineConfig, answer_options, engine_config
from pvlm.errors import EngineStateError
from pvlm.results import Answer
from pvlm.runtime.pair import Pair
from pvlm.runtime.supervisor import ActorHealth
from pvlm.telemetry.metrics import Metrics
from pvlm.telemetry.recorder import Recorder
from pvlm.telemetry.reporter import Reporter
from pvlm_protocols.backend import ModelInfo, Role

if TYPE_CHECKING:
    from pvlm.video.reading import VideoSource

OnProgress = Callable[[str, float], None]
"""Called with the name of a step (``"load target"``, ``"load draft"``, ``"prefill"``) and its progress, 0 to 1."""


def _no_progress(what: str, fraction: float) -> None:
    """Ignore the progress."""


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

    It runs on asyncio, not on trio. Enter and leave ``async with`` in the same task; any task may ask for answers.
    """

    def __init__(
        self, config: EngineConfig, on_progress: OnProgress | None = None, metrics: Metrics | None = None
    ) -> None:
        """Use `create`."""
        self.config = config
        self._reporter = Reporter(metrics)
        self._on_progress: OnProgress = on_progress or _no_progress
        self._state = EngineState.UNOPENED
        self._pair: Pair | None = None
        self._admission = Admission(config, self._reporter)

    @classmethod
    def create(
        cls,
        config: EngineConfig | Mapping[str, Any] | None = None,
        *,
        on_progress: OnProgress | None = None,
        metrics: Metrics | None = None,
        **settings: Any,
    ) -> Self:
        """An engine from a configuration, a mapping, or keywords (see `EngineConfig`). Does no I/O.

        ``metrics``: receives the engine's counts and times, for instance a
        `pvlm.telemetry.prometheus.PrometheusMetrics`.

        Raises ConfigError on unknown keys and invalid settings.
        """
        return cls(engine_config(config, **settings), on_progress, metrics)

    @classmethod
    def from_pretrained(cls, target: str, *, draft: str | None = None, **settings: Any) -> Self:
        """An engine for a target and, if given, a draft: checkpoint directories or hub names. Does no I/O."""
        return cls.create(target=str(target), draft=None if draft is None else str(draft), **settings)

    @property
    def state(self) -> EngineState:
        """Whether the engine is unopened, open or closed."""
        return self._state

    @property
    def models(self) -> dict[Role, ModelInfo]:
        """The loaded models, by role; empty if the engine is not open."""
        return {} if self._pair is None else self._pair.models

    @property
    def processes(self) -> dict[Role, int]:
        """Process ids of the running models on this host, by role (with transport ``inproc``, this process's own)."""
        return {} if self._pair is None else self._pair.processes

    async def health(self, timeout_s: float = 5.0) -> dict[Role, ActorHealth]:
        """The health of each model, by role. Waits at most ``timeout_s``. Empty if the engine is not open."""
        return {} if self._pair is None else await self._pair.health(timeout_s)

    # ---- life cycle -----------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        """Load the models. Raises ModelError."""
        if self._state is not EngineState.UNOPENED:
            raise EngineStateError(
                f"this engine is {self._state.name} and cannot be opened again: make another with Engine.create()"
            )
        self._state = EngineState.OPEN
        try:
            self._pair = await self._new_pair().__aenter__()
        except BaseException:
            self._state = EngineState.CLOSED
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None = None,
        error: BaseException | None = None,
        traceback: TracebackType | None = None,
    ) -> None:
        pair, self._pair = self._pair, None
        self._state = EngineState.CLOSED
        if pair is not None:
            self._admission.close()
            await pair.__aexit__(kind, error, traceback)

    async def aclose(self) -> None:
        """Close the engine. Answers that are being written end with an error.

        A second call does nothing, and an unopened engine can be closed. Do not call it inside a task group that was
        opened inside ``async with engine``.
        """
        await self.__aexit__()

    # ---- answers --------------------------------------------------------------------------------------------------

    async def answer(
        self, video: VideoSource | None, question: str, *, trace: Recorder | None = None, **options: Any
    ) -> Answer:
        """Answer a question about a video.

        ``video``: a path, encoded bytes, a ``(T, H, W, 3)`` uint8 array or tensor, a PIL image, or a list of PIL images
        of one size, used as the frames of a video. None: the question is about no video.
        ``trace``: a `pvlm.trace.Trace`, which records what draft and target do.
        ``options``: see `AnswerOptions` (``max_new_tokens`` is another name of ``max_tokens``).

        Waits for its turn while `EngineConfig.max_sessions` answers are being written.

        Raises OptionError, VideoError, PromptError, ModelError, TargetLost, EngineBusy, EngineStateError.
        """
        async with self.stream(video, question, trace=trace, **options) as chunks:
            async for _ in chunks:
                pass
        return chunks.answer

    def stream(
        self, video: VideoSource | None, question: str, *, trace: Recorder | None = None, **options: Any
    ) -> AnswerStream:
        """`answer`, piece by piece: ``async with engine.stream(...) as chunks: async for chunk in chunks``."""
        if self._state is EngineState.CLOSED:
            raise EngineStateError("this engine is closed: make another with Engine.create()")
        asked = Question(video, question, answer_options(options))
        return AnswerStream(self._enter, asked, self._on_progress, self._reporter, trace)

    def answer_sync(self, video: VideoSource | None, question: str, **options: Any) -> Answer:
        """`answer` for scripts without an event loop. Raises EngineStateError inside a loop and on an open engine."""
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            pass
        else:
            raise EngineStateError(
                "answer_sync() was called inside an event loop: use `await engine.answer(...)` there"
            )
        if self._state is EngineState.OPEN:
            raise EngineStateError("this engine is open on another event loop: use `await engine.answer(...)` there")
        return anyio.run(lambda: self.answer(video, question, **options))

    async def _enter(self, stack: AsyncExitStack) -> tuple[Pair, Admission]:
        """The open models, and the queue before them. An engine that was never opened opens a twin of itself for one
        answer, and leaves it to the stack to close.
        """
        if self._state is EngineState.CLOSED:
            raise EngineStateError("this engine is closed: make another with Engine.create()")
        if self._state is EngineState.UNOPENED:
            twin = Engine(self.config, self._on_progress, self._reporter.metrics)
            return await (await stack.enter_async_context(twin))._enter(stack)
        if self._pair is None:
            raise EngineStateError("this engine is still loading its models: await `async with engine` first")
        return self._pair, self._admission

    def _new_pair(self) -> Pair:
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            raise EngineStateError("pvlm runs on asyncio: call it from a running asyncio event loop") from None
        return Pair(self.config, lambda role, fraction: self._on_progress(f"load {role}", fraction), self._reporter)
