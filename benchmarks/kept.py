"""Many questions on few videos, with room for a part of them: are texts, counts, bytes and memory as they must be?

The bundled pair is asked about drawn clips, several questions at a time, and each answer is compared with plain
decoding by an engine that keeps nothing.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import anyio
import msgspec
import numpy as np
import psutil

from benchmarks.never_slower import drawn_clips
from pvlm.config import EngineConfig
from pvlm.engine import Engine
from pvlm.errors import OptionError
from pvlm.telemetry.metrics import PREFIX_BYTES, PREFIX_EVICTIONS, PREFIX_HITS, PREFIX_QUERIES, Metric

QUESTIONS = (
    "Describe the video.",
    "How many scenes are there?",
    "What is the background of scene one?",
    "What happens in scene one?",
    "List the colors of all objects.",
    "What is the last thing that happens?",
)
VIDEOS, AT_ONCE, LOOKS = 5, 2, 10


class KeptReport(msgspec.Struct, frozen=True, kw_only=True):
    """``different``: answers whose tokens are not those of plain decoding. ``prompt_tokens``, ``cached_tokens``: of the
    target, by the metrics and by the answers' statistics. ``most_bytes``: the largest size of the kept prefixes, by
    role, and ``left_bytes``: after closing. ``memory_mb``: resident memory of each process, looked at ten times.
    """

    questions: int
    prefix_cache_bytes: int
    different: int
    prompt_tokens: tuple[int, int]
    cached_tokens: tuple[int, int]
    evictions: int
    most_bytes: dict[str, int]
    left_bytes: dict[str, int]
    memory_mb: dict[str, list[float]]

    @property
    def passed(self) -> bool:
        """Memory is for the reader: it has no sharp bound."""
        counted = self.prompt_tokens[0] == self.prompt_tokens[1] and self.cached_tokens[0] == self.cached_tokens[1]
        bounded = all(most <= self.prefix_cache_bytes for most in self.most_bytes.values())
        return not self.different and counted and bounded and not any(self.left_bytes.values())


class _Counted:
    """Metrics that remember the sum of each, and its largest value."""

    def __init__(self) -> None:
        self.now, self.most = Counter[tuple[str, str]](), Counter[tuple[str, str]]()

    def add(self, metric: Metric, amount: float = 1.0, **labels: str) -> None:
        key = metric.name, labels.get("role", "")
        self.now[key] += int(amount)
        self.most[key] = max(self.most[key], self.now[key])

    def observe(self, metric: Metric, value: float, **labels: str) -> None:
        pass


async def measure_kept(
    config: EngineConfig, questions: int, prefix_cache_bytes: int, on_turn: Callable[[float], None]
) -> KeptReport:
    """Ask ``questions`` questions on five clips. ``on_turn`` gets the finished fraction. OptionError for none."""
    if questions < 1:
        raise OptionError(f"{questions} questions: at least 1 is needed")
    clips, source, metrics = drawn_clips(VIDEOS), random.Random(1), _Counted()
    asked = [(source.randrange(VIDEOS), source.choice(QUESTIONS)) for _ in range(questions)]
    plain = await _plain(config, clips, {*asked})
    answered = Counter[str]()
    memory_mb: dict[str, list[float]] = {}
    async with Engine.create(config, prefix_cache_bytes=prefix_cache_bytes, metrics=metrics) as engine:

        async def ask_every(first: int) -> None:
            for video, question in asked[first::AT_ONCE]:
                answer = await engine.answer(clips[video], question, max_tokens=64)
                answered["all"] += 1
                answered["different"] += answer.tokens != plain[video, question]
                answered["prompt"] += answer.stats.prompt_tokens
                answered["cached"] += answer.stats.cached_tokens
                on_turn(answered["all"] / questions)
                if answered["all"] % max(1, questions // LOOKS) == 0:
                    for name, resident in _resident_mb(engine.processes).items():
                        memory_mb.setdefault(name, []).append(resident)

        async with anyio.create_task_group() as asking:
            for first in range(AT_ONCE):
                asking.start_soon(ask_every, first)
    return KeptReport(
        questions=questions,
        prefix_cache_bytes=prefix_cache_bytes,
        different=answered["different"],
        prompt_tokens=(metrics.now[PREFIX_QUERIES.name, "target"], answered["prompt"]),
        cached_tokens=(metrics.now[PREFIX_HITS.name, "target"], answered["cached"]),
        evictions=metrics.now[PREFIX_EVICTIONS.name, "target"],
        most_bytes={role: metrics.most[PREFIX_BYTES.name, role] for role in ("target", "draft")},
        left_bytes={role: metrics.now[PREFIX_BYTES.name, role] for role in ("target", "draft")},
        memory_mb=memory_mb,
    )


async def _plain(
    config: EngineConfig, clips: list[np.ndarray], asked: set[tuple[int, str]]
) -> dict[tuple[int, str], tuple[int, ...]]:
    """The tokens of plain decoding without kept prefixes."""
    async with Engine.create(config, method="ar", prefix_cache_bytes=0) as engine:
        return {
            (video, question): (await engine.answer(clips[video], question, max_tokens=64)).tokens
            for video, question in sorted(asked)
        }


def _resident_mb(workers: Mapping[Any, int]) -> dict[str, float]:
    processes = {"engine": psutil.Process(), **{role: psutil.Process(pid) for role, pid in workers.items()}}
    return {name: process.memory_info().rss / 1e6 for name, process in processes.items()}
