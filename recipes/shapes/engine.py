"""Answers by pvlm's own engine, so that what is measured is what a user gets."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from anyio.from_thread import start_blocking_portal

from pvlm import Engine
from pvlm.video import Video, read_video
from pvlm_protocols.backend import FrameDefaults

from .world import MAX_FRAMES

MAX_ANSWER_TOKENS = 700


class EngineAnswerer:
    """An answerer (see `evaluate.measure`) over a warm engine; a context manager. A file is decoded once in a row."""

    def __init__(self, **settings: Any) -> None:
        self._engine = Engine.create(**settings)
        self._stack = ExitStack()
        self._read: tuple[Path | None, Video | None] = (None, None)

    def __enter__(self) -> Self:
        self._portal = self._stack.enter_context(start_blocking_portal())
        self._stack.enter_context(self._portal.wrap_async_context_manager(self._engine))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stack.close()

    def __call__(self, path: Path, question: str) -> str:
        ask = partial(self._engine.answer, self._frames(path), question, max_tokens=MAX_ANSWER_TOKENS)
        return self._portal.call(ask).text

    def _frames(self, path: Path) -> Any:
        if self._read[0] != path:
            every_frame = FrameDefaults(num_frames=MAX_FRAMES, consecutive=True)
            read = partial(read_video, path, num_frames=None, fps=None, start=None, end=None, defaults=every_frame)
            self._read = (path, self._portal.call(read))
        assert self._read[1] is not None
        return self._read[1].frames
