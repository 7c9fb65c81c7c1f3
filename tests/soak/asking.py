"""What a soak asks an engine: questions of every kind, in every way, and whether the answers are what they must be."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

import anyio
import msgspec
import numpy as np

from pvlm import Answer, Engine, ModelError, StreamIdle, VideoError

Source = str | bytes | np.ndarray | None
MAX_TOKENS = 60
STREAM_IDLE_S = 2.0
"""For how long a stream may be unread; some readers stop for twice as long."""
SEEDS = (1, 2)
"""Of sampled answers whose text is known: a function of prompt and seed, however it is decoded."""


@dataclass(frozen=True, eq=False)
class Case:
    """A question about a video in one form."""

    name: str
    video: Source
    question: str
    options: dict[str, Any]


def cases() -> list[Case]:
    """The bundled clips as paths and bytes, whole and in part; frames in memory; and no video."""
    folder = Path(str(files("pvlm") / "bundled" / "clips"))
    clips = msgspec.json.decode((folder / "clips.json").read_bytes())
    made = []
    for clip in clips:
        path = folder / clip["file"]
        made.append(Case(f"{clip['file']}, path", str(path), clip["question"], {}))
        made.append(Case(f"{clip['file']}, bytes", path.read_bytes(), clip["question"], {}))
        made.append(Case(f"{clip['file']}, 6 frames", str(path), "How many scenes are there?", {"num_frames": 6}))
        made.append(Case(f"{clip['file']}, 1 s", str(path), clip["question"], {"start": 0.5, "end": 1.5}))
    frames = np.random.default_rng(0).integers(0, 255, (12, 112, 112, 3), dtype=np.uint8)
    made.append(Case("frames in memory", frames, "What happens in the video?", {}))
    made.append(Case("no video", None, "What happens?", {}))
    return made


DAMAGED: Sequence[bytes] = (b"no video at all", bytes(5000))
"""Neither can be read."""


@dataclass
class Asking:
    """Asks again and again. ``wrong``: what was not as it must be; ``outcomes`` and ``compared`` count."""

    engine: Engine
    known: list[Case]
    wrong: list[str] = field(default_factory=list)
    outcomes: Counter[str] = field(default_factory=Counter)
    compared: Counter[str] = field(default_factory=Counter)
    references: dict[tuple[str, int | None], Answer] = field(default_factory=dict)

    async def take_references(self) -> None:
        """By plain decoding: what every answer has to be, greedy and for each seed."""
        for case in self.known:
            for seed in (None, *SEEDS):
                options = sampling(seed) | case.options
                self.references[case.name, seed] = await self.engine.answer(
                    case.video, case.question, method="ar", max_tokens=MAX_TOKENS, **options
                )

    async def once(self, rng: random.Random) -> None:
        """One question. By chance its worker is killed twice in its work alone: then it ends with an error."""
        try:
            if rng.random() < 0.03:
                await self._refused(rng)
            else:
                await self._asked(rng)
        except ModelError as error:
            if "WorkerLost" not in str(error):
                raise
            self.outcomes["lost two workers to kills"] += 1

    async def _asked(self, rng: random.Random) -> None:
        """A question that has an answer, and one of the ways to continue."""
        case = rng.choice(self.known)
        kind = rng.choice(["greedy", "greedy", "greedy", "seeded", "sampled"])
        seed = rng.choice(SEEDS) if kind == "seeded" else None
        options = case.options | {
            "method": rng.choice(["parallel", "parallel", "sd", "ar"]),
            "max_tokens": rng.choice([5, 20, MAX_TOKENS]),
            "prune": rng.choice(["auto", "none", "uniform"]),
            **(sampling(seed) if kind != "sampled" else {"temperature": 0.8, "top_p": 0.9}),
        }
        reference = None if kind == "sampled" else self.references[case.name, seed]
        match rng.choice(["whole", "whole", "stream", "left", "deadline", "cancelled", "stopped"]):
            case "whole":
                answer = await self.engine.answer(case.video, case.question, **options)
                self._compare(f"{kind}, whole", case, options, answer.tokens, answer.text, reference, whole=True)
            case "stream":
                await self._stream(kind, case, options, reference, None)
            case "left":
                await self._stream(kind, case, options, reference, rng.randint(1, 8))
            case "deadline":
                with anyio.move_on_after(rng.uniform(0.0, 2.0)) as scope:
                    await self.engine.answer(case.video, case.question, **options)
                self.outcomes["cancelled by a deadline" if scope.cancelled_caught else "within its deadline"] += 1
            case "cancelled":
                await self._cancelled(rng, self.engine.answer(case.video, case.question, **options))
            case "stopped":
                pause_s = rng.uniform(0.0, 2 * STREAM_IDLE_S)
                await self._stream(kind, case, options, reference, rng.randint(1, 8), pause_s)

    async def _cancelled(self, rng: random.Random, answering: Coroutine[Any, Any, Answer]) -> None:
        """By one to three cancellations, shortly after each other."""
        task = asyncio.ensure_future(answering)
        await anyio.sleep(rng.uniform(0.0, 2.0))
        for _ in range(rng.randint(1, 3)):
            task.cancel()
            await anyio.sleep(rng.uniform(0.0, 0.003))
        await asyncio.wait([task])
        self.outcomes["cancelled again and again" if task.cancelled() else "answered before it was cancelled"] += 1
        if not task.cancelled():
            task.result()

    async def _stream(
        self,
        kind: str,
        case: Case,
        options: dict[str, Any],
        reference: Answer | None,
        pieces: int | None,
        pause_s: float | None = None,
    ) -> None:
        """``pieces``: leave after so many, or with ``pause_s`` read on after so many seconds."""
        tokens: list[int] = []
        text = ""
        read = 0
        how = "streamed" if pieces is None else "left" if pause_s is None else "read late"
        try:
            async with self.engine.stream(case.video, case.question, **options) as chunks:
                async for chunk in chunks:
                    tokens += chunk.tokens
                    text += chunk.text
                    read += 1
                    if read == pieces:
                        if pause_s is None:
                            break
                        await anyio.sleep(pause_s)
        except StreamIdle:
            if pause_s is None:
                raise
            how = "read too late"
        whole = how in ("streamed", "read late")
        self._compare(f"{kind}, {how}", case, options, tokens, text, reference, whole=whole)

    async def _refused(self, rng: random.Random) -> None:
        try:
            await self.engine.answer(rng.choice(DAMAGED), "?")
        except VideoError:
            self.outcomes["a damaged video refused"] += 1
        else:
            self.wrong.append("a damaged video was answered about")

    def _compare(
        self,
        how: str,
        case: Case,
        options: dict[str, Any],
        tokens: Sequence[int],
        text: str,
        reference: Answer | None,
        *,
        whole: bool,
    ) -> None:
        """A whole answer is the beginning of the reference up to ``max_tokens``; one that was left, a beginning."""
        self.outcomes[how] += 1
        if reference is None:
            return
        self.compared[how] += 1
        expected = reference.tokens[: options["max_tokens"] if whole else len(tokens)]
        if tuple(tokens) != expected or not reference.text.startswith(text.removesuffix("\N{REPLACEMENT CHARACTER}")):
            self.wrong.append(f"{how}: {case.name}, {options}: {text!r} ({tokens}) instead of {reference.text!r}")


def sampling(seed: int | None) -> dict[str, Any]:
    return {} if seed is None else {"temperature": 1.0, "seed": seed}
