"""Several answers at once on one engine, compared with the same answers one after the other."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence
from itertools import cycle, islice
from statistics import median
from typing import Any, NamedTuple

import msgspec

from pvlm.bench.emulated import FRAMES, QUESTION, emulated_settings, warm_up
from pvlm.bench.pairs import PAIRS, PRUNE_RATIO, Pair
from pvlm.config import BUNDLED, Transport
from pvlm.engine import Engine
from pvlm.errors import OptionError
from pvlm.results import Answer
from pvlm.speculation.theory import acceptance_from_length

NAMES = (*PAIRS, BUNDLED)
"""The pairs that may be measured."""
SESSIONS = (1, 2, 4, 8)
NOT_BELOW = 1.0
"""Required throughput of several answers at once, as a ratio to that of one after the other."""


class Asked(NamedTuple):
    """One question about one video, with options of the answer."""

    video: Any
    question: str
    options: dict[str, Any]


class SessionsRow(msgspec.Struct, frozen=True, kw_only=True):
    """``sessions`` answers at once. ``ratio``: their tokens per second over those of one after the other.

    Both include the prefill and, on the bundled pair, reading the videos. ``ratio`` is the median of ``ratios``, which
    has one for each round. A row of one session shows the noise of the ratio. ``tokens``: of all answers of a round;
    ``same_tokens``: whether each answer equals plain decoding.
    """

    pair: str
    sessions: int
    tokens: int
    tokens_per_second: float
    ratio: float
    ratios: tuple[float, ...]
    same_tokens: bool
    time_scale: float | None
    transport: Transport

    @property
    def passed(self) -> bool:
        return self.sessions == 1 or self.ratio >= NOT_BELOW


async def measure_sessions(
    pairs: Iterable[str],
    clips: Sequence[tuple[str, str]] = (),
    *,
    sessions: Sequence[int] = SESSIONS,
    tokens: int = 128,
    rounds: int = 3,
    time_scale: float = 0.1,
    transport: Transport = "ipc",
    on_row: Callable[[SessionsRow], None] = lambda row: None,
) -> list[SessionsRow]:
    """Measure each pair with each number of sessions.

    ``pairs``: names of emulated pairs, or ``bundled``. ``clips``: paths and questions for the bundled pair. ``tokens``:
    of each emulated answer.

    Raises OptionError if a number is too small.
    """
    for name, value, least in (("tokens", tokens, 2), ("rounds", rounds, 1), ("sessions", min(sessions), 1)):
        if value < least:
            raise OptionError(f"{name} is {value}: it must be at least {least}")
    rows: list[SessionsRow] = []
    for pair in pairs:
        emulated = pair != BUNDLED
        if emulated:
            settings, asked = _emulated(PAIRS[pair], tokens, time_scale, transport)
        else:
            settings, asked = {"transport": transport}, [Asked(path, question, {}) for path, question in clips]
        async with Engine.create(settings, max_sessions=max(sessions)) as engine:
            await (warm_up(engine) if emulated else _answer(engine, asked[0]))
            plain = [(await _answer(engine, one, method="ar")).tokens for one in asked]
            for count in sessions:
                now, expected = list(islice(cycle(asked), count)), list(islice(cycle(plain), count))
                measured = [await _measure_round(engine, now, expected) for _ in range(rounds)]
                ratios = tuple(one.one_by_one_s / one.together_s for one in measured)
                rows.append(
                    SessionsRow(
                        pair=pair,
                        sessions=count,
                        tokens=measured[-1].tokens,
                        tokens_per_second=measured[-1].tokens / median(one.together_s for one in measured),
                        ratio=median(ratios),
                        ratios=ratios,
                        same_tokens=all(one.same_tokens for one in measured),
                        time_scale=time_scale if emulated else None,
                        transport=transport,
                    )
                )
                on_row(rows[-1])
    return rows


class _Round(NamedTuple):
    """``tokens``: of all answers at once; ``same_tokens``: whether all answers are as expected, both times."""

    one_by_one_s: float
    together_s: float
    tokens: int
    same_tokens: bool


async def _measure_round(engine: Engine, asked: Sequence[Asked], expected: Sequence[tuple[int, ...]]) -> _Round:
    """Answer the questions one by one, then all at once."""
    began = time.perf_counter()
    one_by_one = [(await _answer(engine, one)).tokens for one in asked]
    turned = time.perf_counter()
    together = [answer.tokens for answer in await asyncio.gather(*(_answer(engine, one) for one in asked))]
    ended = time.perf_counter()
    same = one_by_one == together == list(expected)
    return _Round(turned - began, ended - turned, sum(map(len, together)), same)


async def _answer(engine: Engine, asked: Asked, **options: Any) -> Answer:
    return await engine.answer(asked.video, asked.question, **asked.options, **options)


def _emulated(pair: Pair, tokens: int, time_scale: float, transport: Transport) -> tuple[dict[str, Any], list[Asked]]:
    """Settings of an engine, and its question. The prefill takes only one pass's time, because decoding counts here."""
    target = {"pass_ms": pair.target_ms, "prefill_ms": pair.target_ms, "time_scale": time_scale}
    draft = {
        "pruned_pass_ms": pair.draft_ms,
        "acceptance": acceptance_from_length(pair.accepted_length),
        "stratified": True,
        "time_scale": time_scale,
    }
    options = {"max_tokens": tokens, "prune": "uv", "prune_ratio": PRUNE_RATIO}
    return emulated_settings(target, draft, transport), [Asked(FRAMES, QUESTION, options)]
