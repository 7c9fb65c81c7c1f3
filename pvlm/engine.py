"""The engine: what an application holds."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from enum import Enum, auto
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import anyio

from pvlm.answer.stream import AnswerStream
from pvlm.config import EngineConfig, answer_options, engine_config
from pvlm.errors import EngineStateError
from pvlm.results import Answer
from pvlm.runtime.pair import Runtime
from pvlm.runtime.supervisor import ActorHealth
from pvlm.telemetry.metrics import Metrics
from pvlm.telemetry.recorder import Recorder
from pvlm.telemetry.reporter import Reporter
from pvlm_protocols.backend import ModelInfo, Role

if TYPE_CHECKING:
    from pvlm.video.reading import VideoSource

OnProgress = Callable[[str, float], None]
"""Called with what goes on (``"load target"``, ``"load draft"``, ``"prefill"``) and how far it has come, 0 to 1."""


def _no_progress(what: str, fraction: float) -> None:
    """Nobody watches."""


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

    It runs on asyncio (not on trio). ``async with`` must be entered and left in the same task; answers may come from
    any.
    """

    def __init__(
        self, config: EngineConfig, on_progress: OnProgress | None = None, metrics: Metrics | None = None
    ) -> None:
        """Use `create`."""
        self.config = config
        self._reporter = Reporter(metrics)
        self._on_progress: OnProgress = on_progress or _no_progress
        self._state = EngineState.UNOPENED
        self._runtime: Runtime | None = None

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

        ``metrics``: receives what the engine counts and times, for instance a
        `pvlm.telemetry.prometheus.PrometheusMetrics`.

        Raises ConfigError on unknown keys and on settings that cannot be.
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
        """What is loaded, by role; empty if the engine is not open."""
        return {} if self._runtime is None else self._runtime.models

    @property
    def processes(self) -> dict[Role, int]:
        """Process ids of the running models on this host, by role (with transport ``inproc``, this process's own)."""
        return {} if self._runtime is None else self._runtime.processes

    async def health(self, timeout_s: float = 5.0) -> dict[Role, ActorHealth]:
        """How the models are, by role; each is asked, at most ``timeout_s``. Empty if the engine is not open."""
        return {} if self._runtime is None else await self._runtime.health(timeout_s)

    # ---- life cycle -----------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        """Load the models. Raises ModelError."""
        if self._state is not EngineState.UNOPENED:
            raise EngineStateError(
                f"this engine is {self._state.name} and cannot be opened again: make another with Engine.create()"
            )
        self._state = EngineState.OPEN
        try:
            self._runtime = await self._new_runtime().__aenter__()
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
        runtime, self._runtime = self._runtime, None
        self._state = EngineState.CLOSED
        if runtime is not None:
            await runtime.__aexit__(kind, error, traceback)

    async def aclose(self) -> None:
        """Close the engine; answers that are being written end with an error. May be called twice, and on an unopened
        engine, but not from a task group that was opened inside ``async with engine`` and is still open.
        """
        await self.__aexit__()

    # ---- answers --------------------------------------------------------------------------------------------------

    async def answer(
        self, video: VideoSource | None, question: str, *, trace: Recorder | None = None, **options: Any
    ) -> Answer:
        """Answer a question about a video.

        ``video``: a path, encoded bytes, a ``(T, H, W, 3)`` uint8 array or tensor, or a list of PIL images of one size,
        which are taken for a video's frames. None: a question about no video.
        ``trace``: a `pvlm.trace.Trace`, which then holds what draft and target did.
        ``options``: see `AnswerOptions` (``max_new_tokens`` is another name of ``max_tokens``).

        Where `EngineConfig.max_sessions` answers are being written it waits for its turn.

        Raises OptionError, VideoError, PromptError, ModelError, TargetLost, EngineBusy, EngineStateError.
        """
        async with self.stream(video, question, trace=trace, **options) as chunks:
            async for _ in chunks:
                pass
        return chunks.answer

    def stream(
        self, video: VideoSource | None, question: str, *, trace: Recorder | None = None, **options: Any
    ) -> AnswerStream:
        """As `answer`, piece by piece: ``async with engine.stream(...) as chunks: async for chunk in chunks``."""
        if self._state is EngineState.CLOSED:
            raise EngineStateError("this engine is closed: make another with Engine.create()")
        return AnswerStream(
            _Borrowed(self), video, question, answer_options(options), self._on_progress, self._reporter, trace
        )

    def answer_sync(self, video: VideoSource | None, question: str, **options: Any) -> Answer:
        """As `answer`, for scripts without an event loop. Raises EngineStateError inside one, and on an open engine."""
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

    def _new_runtime(self) -> Runtime:
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            raise EngineStateError("pvlm runs on asyncio: call it from a running asyncio event loop") from None
        return Runtime(self.config, lambda role, fraction: self._on_progress(f"load {role}", fraction), self._reporter)


class _Borrowed:
    """The open engine's runtime, or one of its own for a single answer."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._own: Runtime | None = None

    async def __aenter__(self) -> Runtime:
        if self._engine.state is EngineState.CLOSED:
            raise EngineStateError("this engine is closed: make another with Engine.create()")
        if self._engine._runtime is not None:
            return self._engine._runtime
        if self._engine.state is EngineState.OPEN:
            raise EngineStateError("this engine is still loading its models: await `async with engine` first")
        self._own = await self._engine._new_runtime().__aenter__()
        return self._own

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        if self._own is None:
            return None
        return await self._own.__aexit__(kind, error, traceback)
