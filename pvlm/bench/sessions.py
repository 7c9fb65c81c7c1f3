"""Several answers at once on one engine, compared with the same answers one after the other.

Each video is read once, before. Decoding is the time without the target's prefill, but with its vision tower.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import cycle, islice, pairwise
from statistics import median
from typing import Any, NamedTuple

import anyio
import msgspec
import numpy as np

from pvlm.bench.emulated import FRAMES, QUESTION, emulated_settings, warm_up
from pvlm.bench.methods import read_clip
from pvlm.bench.pairs import PAIRS, PRUNE_RATIO, Pair
from pvlm.bench.passes import LeastTime, least_pass_time
from pvlm.bench.rows import measured
from pvlm.config import BUNDLED, EngineConfig, Transport, engine_config
from pvlm.engine import Engine
from pvlm.errors import OptionError
from pvlm.results import Answer
from pvlm.speculation.theory import acceptance_from_length
from pvlm.workers.placement import worker_spec

NAMES = (*PAIRS, BUNDLED)
"""The pairs that may be measured."""
SESSIONS = (1, 2, 4, 8)
NOT_BELOW = 1.0
"""Required throughput in decoding of several answers at once, as a ratio to that of one after the other."""
FURTHER_TOKEN = 0.02
"""What each further token of an emulated pass costs, as a share of the pass over one."""
RUNNING_SHARE = 8
"""An answer has written ``1 / RUNNING_SHARE`` of its tokens when another's prefill begins beside it."""


class Asked(NamedTuple):
    """One question about one video, with options of the answer."""

    video: Any
    question: str
    options: dict[str, Any]


class SessionsRow(msgspec.Struct, frozen=True, kw_only=True):
    """``sessions`` answers at once.

    ``decoding_ratio``: their throughput in decoding over that of one after the other. That is the number of tokens
    after the first of each answer, over the wall time without the target's own prefill. ``ratio``: the same of all
    tokens and the whole time. Both are medians over rounds, and ``decoding_ratios`` has one for each round. A row of
    one session shows the noise of the ratios.

    Times are the models' own: measured times over ``time_scale``. ``first_token_s_*``: percentiles of the time to the
    first token. ``between_tokens_ms_*``: of the time between two pieces of a stream. ``prefill_gap_ms``: the longest
    such time of a running answer during the prefill of another; ``prefill_ms``: that prefill. ``busy``: the share of
    the time without prefill in which the target ran a pass. ``of_limit``: the least time for the arithmetic of the
    target's passes (`least_pass_time`), over the time that they took; None where the backend does not tell their cost.
    ``tokens``: of all answers of a round; ``same_tokens``: whether each answer equals plain decoding.
    """

    pair: str
    sessions: int
    tokens: int
    decoding_tokens_per_second: float
    decoding_ratio: float
    decoding_ratios: tuple[float, ...]
    tokens_per_second: float
    ratio: float
    first_token_s_p50: float
    first_token_s_p99: float
    between_tokens_ms_p50: float
    between_tokens_ms_p99: float
    prefill_gap_ms: float
    prefill_ms: float
    busy: float
    of_limit: float | None
    same_tokens: bool
    time_scale: float | None
    further_token: float | None
    transport: Transport
    backend: str

    @property
    def passed(self) -> bool:
        return self.sessions == 1 or self.decoding_ratio >= NOT_BELOW


async def measure_sessions(
    pairs: Iterable[str],
    clips: Sequence[tuple[str, str]] = (),
    *,
    sessions: Sequence[int] = SESSIONS,
    tokens: int = 200,
    rounds: int = 3,
    time_scale: float = 0.1,
    further_token: float = FURTHER_TOKEN,
    backend: str | None = None,
    transport: Transport = "ipc",
    on_row: Callable[[SessionsRow], None] = lambda row: None,
) -> list[SessionsRow]:
    """Measure each pair with each number of sessions.

    ``pairs``: names of emulated pairs, or ``bundled``. ``clips``: paths and questions for the bundled pair, which
    ``backend`` runs. ``tokens``: of each answer.

    Raises OptionError if a number is too small.
    """
    for name, value, least in (
        ("tokens", tokens, 2),
        ("rounds", rounds, 1),
        ("sessions", min(sessions), 1),
        ("further_token", further_token, 0),
    ):
        if value < least:
            raise OptionError(f"{name} is {value}: it must be at least {least}")
    rows: list[SessionsRow] = []
    for pair in pairs:
        emulated = pair != BUNDLED
        limit = None
        if emulated:
            settings, asked = _emulated(PAIRS[pair], tokens, time_scale, further_token, transport)
        else:
            settings = {"transport": transport, "prefix_cache_bytes": 0}
            settings |= {} if backend is None else {"backend": backend}
            asked = [await _read(engine_config(settings), path, question, tokens) for path, question in clips]
            limit = await anyio.to_thread.run_sync(_target_limit, engine_config(settings))
        async with Engine.create(settings, max_sessions=max(2, *sessions)) as engine:
            await (warm_up(engine) if emulated else _written(engine, asked[0]))
            plain = [(await _written(engine, one, method="ar")).answer.tokens for one in asked]
            scale = time_scale if emulated else 1.0
            beside = await _beside_prefill(engine, asked)
            for count in sessions:
                now, expected = list(islice(cycle(asked), count)), list(islice(cycle(plain), count))
                found = [await _measure_round(engine, now) for _ in range(rounds)]
                decoding = tuple(one.together.decoding / one.one_by_one.decoding for one in found)
                together = [written for one in found for written in one.together.answers]
                first_s = _percentiles([written.first_token_s / scale for written in together])
                gaps_ms = _percentiles([gap / scale for written in together for gap in written.gaps_ms()])
                rows.append(
                    SessionsRow(
                        pair=pair,
                        sessions=count,
                        tokens=found[-1].together.tokens,
                        decoding_tokens_per_second=median(one.together.decoding for one in found) * scale,
                        decoding_ratio=median(decoding),
                        decoding_ratios=decoding,
                        tokens_per_second=median(one.together.throughput for one in found) * scale,
                        ratio=median(one.together.throughput / one.one_by_one.throughput for one in found),
                        first_token_s_p50=first_s[0],
                        first_token_s_p99=first_s[1],
                        between_tokens_ms_p50=gaps_ms[0],
                        between_tokens_ms_p99=gaps_ms[1],
                        prefill_gap_ms=beside.gap_ms / scale,
                        prefill_ms=beside.prefill_ms / scale,
                        busy=median(one.together.busy for one in found),
                        of_limit=None if limit is None else median(one.together.of_limit(limit) for one in found),
                        same_tokens=all(
                            run.all_tokens == expected for one in found for run in (one.one_by_one, one.together)
                        ),
                        time_scale=time_scale if emulated else None,
                        further_token=further_token if emulated else None,
                        transport=transport,
                        backend=engine.config.backend,
                    )
                )
                on_row(rows[-1])
    return rows


class Written(NamedTuple):
    """An answer, when its writing began, and when its pieces with tokens arrived, by ``time.perf_counter``."""

    answer: Answer
    began_s: float
    arrived_s: list[float]

    @property
    def first_token_s(self) -> float:
        return self.arrived_s[0] - self.began_s

    def gaps_ms(self, after_s: float = 0.0, before_s: float = float("inf")) -> list[float]:
        """The times between two pieces, of those gaps that touch the given time."""
        return [
            (later - earlier) * 1000
            for earlier, later in pairwise(self.arrived_s)
            if later >= after_s and earlier <= before_s
        ]


@dataclass(frozen=True)
class _Run:
    """Some answers, and the wall time of all of them."""

    answers: Sequence[Written]
    wall_s: float

    @property
    def all_tokens(self) -> list[tuple[int, ...]]:
        return [written.answer.tokens for written in self.answers]

    @property
    def tokens(self) -> int:
        return sum(map(len, self.all_tokens))

    @property
    def throughput(self) -> float:
        """Tokens a second."""
        return self.tokens / self.wall_s

    @property
    def decoding_s(self) -> float:
        """The time in which the target did not prefill."""
        return self.wall_s - sum(measured(written.answer.stats.target_prefill_ms) for written in self.answers) / 1000

    @property
    def decoding(self) -> float:
        """Tokens after the first of each answer, a second of `decoding_s`."""
        return (self.tokens - len(self.answers)) / self.decoding_s

    @property
    def passes(self) -> set[tuple[int, float]]:
        """Tokens and time of each pass of the target. One that several answers shared counts once."""
        return {one for written in self.answers for one in written.answer.stats.target_passes_ms}

    @property
    def busy(self) -> float:
        """The share of `decoding_s` in which the target ran a pass."""
        return sum(ms for _, ms in self.passes) / 1000 / self.decoding_s

    def of_limit(self, least_ms: LeastTime) -> float:
        """The least time for all passes over the time that they took, with half of an answer in the cache."""
        stats, passes = self.answers[0].answer.stats, self.passes
        rows = stats.prompt_tokens + stats.new_tokens // 2
        least = {tokens: least_ms(tokens, rows) for tokens in {tokens for tokens, _ in passes}}
        return sum(least[tokens] for tokens, _ in passes) / sum(ms for _, ms in passes)


class _Round(NamedTuple):
    one_by_one: _Run
    together: _Run


async def _measure_round(engine: Engine, asked: Sequence[Asked]) -> _Round:
    """Answer the questions one by one, then all at once."""
    began = time.perf_counter()
    one_by_one = [await _written(engine, one) for one in asked]
    turned = time.perf_counter()
    together = await asyncio.gather(*(_written(engine, one) for one in asked))
    ended = time.perf_counter()
    return _Round(_Run(one_by_one, turned - began), _Run(together, ended - turned))


class _Beside(NamedTuple):
    gap_ms: float
    prefill_ms: float


async def _beside_prefill(engine: Engine, asked: Sequence[Asked]) -> _Beside:
    """The longest gap in an answer that is being written while another's prompt is prefilled."""
    running = asyncio.Event()
    pieces = asked[0].options["max_tokens"] // RUNNING_SHARE
    first = asyncio.create_task(_written(engine, asked[0], running=running, running_after=pieces))
    await running.wait()
    second = await _written(engine, asked[-1])
    prefill_ms = measured(second.answer.stats.target_prefill_ms)
    written = await first
    gaps_ms = written.gaps_ms(second.began_s, second.arrived_s[0])
    return _Beside(max(gaps_ms, default=0.0), prefill_ms)


async def _written(
    engine: Engine, asked: Asked, *, running: asyncio.Event | None = None, running_after: int = 0, **options: Any
) -> Written:
    """Answer, and note when its pieces arrive. ``running`` is set after ``running_after`` tokens."""
    began_s, tokens = time.perf_counter(), 0
    arrived_s: list[float] = []
    async with engine.stream(asked.video, asked.question, **asked.options, **options) as chunks:
        async for chunk in chunks:
            if chunk.tokens:
                arrived_s.append(time.perf_counter())
                tokens += len(chunk.tokens)
            if running is not None and tokens > running_after:
                running.set()
    return Written(chunks.answer, began_s, arrived_s)


def _target_limit(config: EngineConfig) -> LeastTime | None:
    """The least time of the bundled target's passes, on as many threads as its worker has."""
    spec = worker_spec(config, "target", "", config.backend_of("target"), alone=False)
    return least_pass_time(config, "target", spec.threads or 1)


async def _read(config: EngineConfig, path: str, question: str, tokens: int) -> Asked:
    """A question about a video that is read once."""
    clip = await read_clip(config, path, question)
    return Asked(clip.frames, question, {"num_frames": len(clip.frames), "max_tokens": tokens, "ignore_eos": True})


def _percentiles(values: Sequence[float]) -> tuple[float, float]:
    """The median and the 99th percentile; 0 where every answer came in one piece."""
    return (float(np.percentile(values, 50)), float(np.percentile(values, 99))) if values else (0.0, 0.0)


def _emulated(
    pair: Pair, tokens: int, time_scale: float, further_token: float, transport: Transport
) -> tuple[dict[str, Any], list[Asked]]:
    """Settings of an engine, and its question."""
    target, draft = emulated_models(pair, {"further_token": further_token, "time_scale": time_scale})
    options = {"max_tokens": tokens, "prune": "uv", "prune_ratio": PRUNE_RATIO}
    return emulated_settings(target, draft, transport), [Asked(FRAMES, QUESTION, options)]


def emulated_models(pair: Pair, common: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Target and draft of a pair, with what is ``common``. Where the paper gives no prefill, it is one pass's time."""
    target = {
        "pass_ms": pair.target_ms,
        "prefill_ms": pair.target_prefill_ms or pair.target_ms,
        "layers": pair.target_layers,
        **common,
    }
    draft = {
        "pruned_pass_ms": pair.draft_ms,
        "prefill_ms": pair.draft_prefill_ms or pair.draft_ms[0.0],
        "layers": pair.draft_layers,
        "acceptance": acceptance_from_length(pair.accepted_length),
        "stratified": True,
        **common,
    }
    return target, draft
