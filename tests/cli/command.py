"""``python -m tests.cli.command``: the command ``pvlm`` on an engine without models, which answers a fixed text.

``PAUSE`` names moments at which it sleeps until it is interrupted: ``import NAME``, ``open``, ``text``, ``close``,
``exit``. At ``reader`` it waits until nobody reads its output. ``PIECE`` is answered instead of `PIECES`;
``QUESTION``: the question. ``LOG``: a line for the log while the progress is shown.
"""

from __future__ import annotations

import atexit
import os
import select
import sys
import time
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from typing import Any

PAUSES = os.environ.get("PAUSE", "").split(",")
PIECES = (
    "The video has",
    " two",
    " scenes",
    ".",
    " In scene one, a small pink diamond",
    " grows",
    " at the center",
    ".",
)


def pause(moment: str) -> None:
    """Sleep at a moment that `PAUSES` names, after a sign on the terminal."""
    if moment in PAUSES:
        os.write(2, f"[{moment}]".encode())
        time.sleep(60)


class Finder:
    """Pauses where a module is imported."""

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: Any = None) -> ModuleSpec | None:
        """Find nothing."""
        pause(f"import {name}")
        return None


class Stream:
    """An answer."""

    def __init__(self, on_progress: Any, question: str) -> None:
        from tests.support.figures import stats

        piece = os.environ.get("PIECE", "")
        self._pieces = (question if piece == "QUESTION" else piece,) if piece else PIECES
        self._on_progress = on_progress
        self._stats = stats()

    async def __aenter__(self) -> Stream:
        import anyio

        for step in ("load target", "load draft", "read video", "prefill"):
            for fraction in (0.0, 0.5, 1.0):
                self._on_progress(step, fraction)
                await anyio.sleep(0.05)
        if line := os.environ.get("LOG"):
            from pvlm.log import log

            log.error(line)
            await anyio.sleep(0.3)
        if "open" in PAUSES:
            os.write(2, b"[open]")
            await anyio.sleep(60)
        return self

    async def __aexit__(self, *error: object) -> None:
        import anyio

        with anyio.CancelScope(shield=True):
            if "close" in PAUSES:
                os.write(2, b"[close]")
                await anyio.sleep(60)

    async def __aiter__(self) -> Any:
        import anyio

        from pvlm.results import Chunk

        for index, piece in enumerate(self._pieces):
            yield Chunk(piece, (index,))
            await anyio.sleep(0.05)
            if index == 1 and "reader" in PAUSES:
                reader = select.poll()
                reader.register(1, 0)
                reader.poll(60_000)
            if index == 1 and "text" in PAUSES:
                os.write(2, b"[text]")
                await anyio.sleep(60)

    @property
    def answer(self) -> Any:
        """The whole answer."""
        from pvlm.results import Answer

        tokens = tuple(range(len(self._pieces)))
        return Answer(text="".join(self._pieces), tokens=tokens, finish_reason="eos", stats=self._stats)


class Engine:
    """An engine whose answers are `Stream`."""

    def __init__(self, on_progress: Any, config: Any) -> None:
        self._on_progress = on_progress
        self.config = config

    @classmethod
    def create(cls, *, on_progress: Any, **settings: Any) -> Engine:
        """As `pvlm.Engine.create`."""
        from pvlm.config import engine_config

        return cls(on_progress, engine_config(settings))

    async def __aenter__(self) -> Engine:
        return self

    async def __aexit__(self, *error: object) -> None:
        """Nothing to close."""

    def stream(self, video: object, question: str, **options: object) -> Stream:
        """As `pvlm.Engine.stream`."""
        return Stream(self._on_progress, question)

    async def answer(self, video: object, question: str, **options: object) -> Any:
        """As `pvlm.Engine.answer`, after a time in which progress is shown."""
        import anyio

        await anyio.sleep(0.3)
        return Stream(self._on_progress, question).answer


if __name__ == "__main__":
    from types import ModuleType

    sys.meta_path.insert(0, Finder())  # type: ignore[arg-type]
    atexit.register(pause, "exit")
    engine = ModuleType("pvlm.engine")
    engine.Engine = Engine  # type: ignore[attr-defined]
    sys.modules["pvlm.engine"] = engine
    from pvlm.cli import main

    sys.exit(main())
