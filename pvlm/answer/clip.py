"""A video that stays: read once, and pinned in both models, for as many questions as its caller has."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Self, Unpack

from pvlm.answer.frames import processors_of
from pvlm.answer.question import AskedTurn, Media, Question
from pvlm.answer.residence import Residence
from pvlm.answer.sight import Looking, Sight
from pvlm.answer.stream import AnswerStream
from pvlm.config import AnswerOptions, answer_options, check_question
from pvlm.errors import EngineStateError
from pvlm.results import Answer
from pvlm.settings.keywords import QuestionKeywords
from pvlm.telemetry.recorder import Recorder
from pvlm.video import check_source

if TYPE_CHECKING:
    from pvlm.video.reading import VideoSource


class Clip:
    """A video of `pvlm.Engine.watch`: an async context manager. Its frames are read when it is entered.

    Both models keep the video's rows until it is left, as far as `EngineConfig.prefix_cache_bytes` allows. So a further
    question costs its own tokens.
    """

    def __init__(
        self,
        video: VideoSource,
        frames: AnswerOptions,
        residence: Callable[[], Residence],
        stream: Callable[[Question, Recorder | None], AnswerStream],
    ) -> None:
        """Use `pvlm.Engine.watch`."""
        self._media = Media("video", video)
        self._frames = frames
        self._find_residence = residence
        self._stream = stream
        self._residence: Residence | None = None
        self._sight: Sight | None = None

    async def __aenter__(self) -> Self:
        """Read the frames. Raises VideoError, OptionError, PromptError, and EngineStateError if it is not open."""
        if self._residence is not None:
            raise EngineStateError("a clip can be entered once: watch the video again")
        check_source(self._media.source)
        residence = self._residence = self._find_residence()
        processors = processors_of(residence.pair, draft=True)
        looking = Looking("video", self._media.name, self._media.source, self._frames, 0, processors)
        self._sight = await residence.sights.see(looking, lambda fraction: None)
        residence.pair.pin(self._digests)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._residence is not None and self._sight is not None:
            self._residence.pair.unpin(self._digests)
            self._sight = None

    @property
    def _digests(self) -> frozenset[bytes]:
        assert self._sight is not None
        return frozenset(frames.digest for frames in self._sight.frames.values()) - {b""}

    async def answer(
        self, question: str, *, trace: Recorder | None = None, **options: Unpack[QuestionKeywords]
    ) -> Answer:
        """Answer a question about the video. ``options``: those of `pvlm.Engine.answer` that choose no frames.

        Raises as `pvlm.Engine.answer`, and EngineStateError outside of its ``async with``.
        """
        async with self.stream(question, trace=trace, **options) as chunks:
            async for _ in chunks:
                pass
        return chunks.answer

    def stream(
        self, question: str, *, trace: Recorder | None = None, **options: Unpack[QuestionKeywords]
    ) -> AnswerStream:
        """`answer`, piece by piece: ``async with clip.stream(...) as chunks: async for chunk in chunks``."""
        if self._sight is None:
            raise EngineStateError("this clip is not open: `async with engine.watch(...) as clip`")
        check_question(question)
        media = Media("video", self._media.source, self._sight)
        asked = Question((AskedTurn("user", (media, question)),), answer_options(options))
        return self._stream(asked, trace)
