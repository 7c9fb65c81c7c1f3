"""A storm: answers of one engine, several at a time, while something goes wrong all the time."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import anyio
import msgspec
import numpy as np

from pvlm import Engine, ModelError, PvlmError, StreamIdle
from pvlm_protocols.backend import Role

DEADLINE_S = 120.0
"""For an answer. It is reached only by what hangs."""
STORM_S = 800.0
"""For a storm with the opening and closing of its engine."""
SETTINGS: dict[str, Any] = {
    "hang_timeout_s": 5.0,
    "target_restarts": 10_000,
    "draft_restarts": 10_000,
    "threads": 1,
    "draft_threads": 1,
}
EMULATED: dict[str, Any] = {
    "target": '{"pass_ms": 3, "prefill_ms": 20, "open_ms": 5, "video_tokens": 64, "seed": 7}',
    "draft": '{"pass_ms": 1, "prefill_ms": 8, "video_tokens": 64, "seed": 7, "acceptance": 0.8}',
    "backend": "slow-emulated",
}
FRAMES = np.random.default_rng(0).integers(0, 255, (4, 64, 64, 3), dtype=np.uint8)


class Question(msgspec.Struct, frozen=True):
    """What is asked, and the tokens and the text that a calm engine answers."""

    video: Any
    question: str
    options: dict[str, Any]
    tokens: tuple[int, ...]
    text: str


class Figures(msgspec.Struct, kw_only=True):
    """What became of a storm. ``outcomes``: ``exact``, or the name of an error of pvlm. ``wrong``: what must not be."""

    name: str
    answers: int = 0
    outcomes: dict[str, int] = msgspec.field(default_factory=dict)
    faults: dict[str, int] = msgspec.field(default_factory=dict)
    restarts: dict[str, int] = msgspec.field(default_factory=dict)
    reasons: dict[str, int] = msgspec.field(default_factory=dict)
    recovered: int = 0
    """Answers that continued with another target."""
    without_draft: int = 0
    """Answers of which at least a part was written without a draft that was lost."""
    wrong: list[str] = msgspec.field(default_factory=list)

    def count(self, what: str, kind: str, times: int = 1) -> None:
        counts: dict[str, int] = getattr(self, what)
        counts[kind] = counts.get(kind, 0) + times


Strike = Callable[[Engine, random.Random, Figures], Any]
"""Does something to an engine, and counts it."""


async def kill(engine: Engine, choose: random.Random, figures: Figures) -> None:
    """SIGKILL to a worker."""
    role, pid = _a_worker(engine, choose)
    if pid is not None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
            figures.count("faults", f"kill {role}")


async def stop(engine: Engine, choose: random.Random, figures: Figures) -> None:
    """SIGSTOP to a worker; half of them go on after a moment, the others are taken to hang."""
    role, pid = _a_worker(engine, choose)
    if pid is None:
        return
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGSTOP)
        goes_on = choose.random() < 0.5
        figures.count("faults", f"stop {role}, {'then continue' if goes_on else 'for good'}")
        if goes_on:
            await anyio.sleep(choose.uniform(0.05, 1.5))
            os.kill(pid, signal.SIGCONT)


async def poison_target(engine: Engine, choose: random.Random, figures: Figures) -> None:
    """A question that kills the target. It fails alone, after two losses."""
    try:
        answer = await engine.answer(FRAMES, "poison target", max_tokens=20)
    except PvlmError as error:
        if type(error) is not ModelError or "lost 2 times in the work for this answer" not in str(error):
            figures.wrong.append(f"poison ends with {type(error).__name__}: {error}")
        figures.count("faults", "poison for the target")
    else:
        figures.wrong.append(f"poison was answered: {answer.text!r}")


async def poison_draft(engine: Engine, choose: random.Random, figures: Figures) -> None:
    """A question that kills the draft. The target answers it."""
    answer = await engine.answer(FRAMES, "poison draft", max_tokens=20)
    if answer.stats.draft_lost:  # else the draft was not running
        figures.count("faults", "poison for the draft")


async def hang_up(engine: Engine, choose: random.Random, figures: Figures) -> None:
    """Three callers that ask and hang up, in one, two and three cancellations, a moment after each other."""

    async def one(times: int, after_s: float, pauses_s: list[float]) -> None:
        asking = asyncio.ensure_future(engine.answer(FRAMES, "What happens?", max_tokens=200))
        await anyio.sleep(after_s)
        for pause_s in pauses_s:
            asking.cancel()
            await anyio.sleep(pause_s)
        await asyncio.wait([asking])
        figures.count("faults", f"cancelled {times} times" if asking.cancelled() else "answered before that")

    async with anyio.create_task_group() as callers:
        for times in (1, 2, 3):
            pauses_s = [choose.uniform(0, 0.003) for _ in range(times)]
            callers.start_soon(one, times, choose.expovariate(1 / 0.1), pauses_s)


async def stop_reading(engine: Engine, choose: random.Random, figures: Figures) -> None:
    """Two readers that stop after a few pieces, and read on later: the answer is whole, or has ended with an error."""

    async def one(pieces: int, pause_s: float) -> None:
        tokens: list[int] = []
        try:
            async with engine.stream(FRAMES, "What happens?", method="ar", max_tokens=200) as chunks:
                async for chunk in chunks:
                    tokens += chunk.tokens
                    if (pieces := pieces - 1) == 0:
                        await anyio.sleep(pause_s)
        except StreamIdle:
            figures.count("faults", "read too late")
        else:
            figures.count("faults", "read late")
            if len(tokens) != 200:
                figures.wrong.append(f"a late reader got {len(tokens)} of 200 tokens")

    async with anyio.create_task_group() as readers:
        for _ in range(2):
            readers.start_soon(one, choose.randint(1, 5), choose.uniform(0.0, 2.0))


def _a_worker(engine: Engine, choose: random.Random) -> tuple[Role, int | None]:
    role: Role = choose.choice(["target", "draft"])
    return role, engine.processes.get(role)


async def references(settings: dict[str, Any], asked: list[dict[str, Any]]) -> list[Question]:
    """What a target by itself, in a thread of this process, answers."""
    questions = []
    async with Engine.create({**settings, "transport": "inproc", "method": "ar"}) as engine:
        for each in asked:
            video, question, options = each["video"], each["question"], each["options"]
            answer = await engine.answer(video, question, **{**options, "method": "ar"})
            questions.append(Question(video, question, options, answer.tokens, answer.text))
    return questions


def emulated_questions(lengths: Sequence[int] = (40, 200)) -> list[dict[str, Any]]:
    """Answers of these lengths under every method and coupling."""
    asked = []
    for method in ("parallel", "parallel", "sd", "ar"):
        for sampling in ({}, {"temperature": 0.8, "seed": 5}, {"temperature": 0.8, "window": 5, "outcomes": 6}):
            for tokens in lengths:
                options = {"method": method, "max_tokens": tokens, **sampling}
                asked.append({"video": FRAMES, "question": "What happens?", "options": options})
    return asked


async def storm(
    figures: Figures,
    settings: dict[str, Any],
    questions: list[Question],
    *,
    answers: int,
    seed: int,
    strikes: list[Strike],
    every_s: float = 1.5,
    at_once: int = 4,
    on_open: Callable[[], Any] = lambda: None,
    observers: Mapping[str, Any] | None = None,
) -> None:
    """Ask ``answers`` questions in a random order; a strike comes every so many seconds on average. ``on_open`` is
    called when the engine is open. ``observers``: of the engine, by keyword of `Engine.create`.
    """
    choose = random.Random(seed)
    left = [choose.choice(questions) for _ in range(answers)]
    with anyio.move_on_after(STORM_S) as whole:
        unopened = Engine.create({**SETTINGS, **settings}, **(observers or {}))
        await _storm(figures, unopened, left, choose, strikes, every_s, at_once, on_open)
    if whole.cancelled_caught:
        figures.wrong.append(f"the storm has no end after {STORM_S:g} s")


async def _storm(
    figures: Figures,
    unopened: Engine,
    left: list[Question],
    choose: random.Random,
    strikes: list[Strike],
    every_s: float,
    at_once: int,
    on_open: Callable[[], Any],
) -> None:
    async with unopened as engine:
        on_open()

        async def ask_on() -> None:
            while left:
                await ask(engine, left.pop(), figures)

        async def strike_on() -> None:
            while True:
                await anyio.sleep(choose.expovariate(1 / every_s))
                await choose.choice(strikes)(engine, choose, figures)

        async with anyio.create_task_group() as tasks:
            if strikes:
                tasks.start_soon(strike_on)
            async with anyio.create_task_group() as asking:
                for _ in range(at_once):
                    asking.start_soon(ask_on)
            tasks.cancel_scope.cancel()
        for role, health in (await engine.health(DEADLINE_S)).items():
            figures.count("restarts", role, health.restarts)
            if health.sessions:
                figures.wrong.append(f"the {role} still holds {health.sessions} sessions")


async def ask(engine: Engine, question: Question, figures: Figures) -> None:
    """One answer: exact, or an error of pvlm that says something, and in time."""
    figures.answers += 1
    try:
        with anyio.fail_after(DEADLINE_S):
            answer = await engine.answer(question.video, question.question, **question.options)
    except PvlmError as error:
        figures.count("outcomes", type(error).__name__)
        figures.count("reasons", _without_numbers(str(error)))
        if not str(error).strip():
            figures.wrong.append(f"a {type(error).__name__} without a word")
    except TimeoutError:
        figures.wrong.append(f"no end after {DEADLINE_S:g} s: {question.options}")
    except Exception as error:
        figures.wrong.append(f"{type(error).__name__}: {error}")
    else:
        if (answer.tokens, answer.text) == (question.tokens, question.text):
            figures.count("outcomes", "exact")
        else:
            figures.wrong.append(f"another text under {question.options}: {answer.text!r}")
        figures.recovered += answer.stats.target_recoveries > 0
        figures.without_draft += answer.stats.draft_lost != ""


def _without_numbers(text: str) -> str:
    return "".join("#" if letter.isdigit() else letter for letter in text)[:160]


def add_faults(figures: Figures, *counts: dict[str, int]) -> None:
    for each in counts:
        for kind, times in each.items():
            figures.count("faults", kind, times)


def write(figures: Figures) -> None:
    """Leave the figures in ``build/chaos`` for `tests.chaos.report`."""
    folder = Path("build/chaos")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{figures.name.replace(' ', '-')}.json"
    path.write_text(json.dumps(msgspec.to_builtins(figures), indent=2) + "\n")
