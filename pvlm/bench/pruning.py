"""Acceptance of a draft with pruned video tokens, and the places of the kept tokens in the video."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import anyio
import msgspec
import numpy as np
from numpy.typing import NDArray

from pvlm.bench.rows import pooled_acceptance
from pvlm.config import EngineConfig, answer_options
from pvlm.coordination.events import Command, Event
from pvlm.engine import Engine
from pvlm.errors import OptionError
from pvlm.results import Answer
from pvlm.speculation.masks import unpack_mask
from pvlm.speculation.pruning import load_pruner
from pvlm.telemetry.recorder import Recorded
from pvlm_protocols.messages import PruneMask

if TYPE_CHECKING:
    from pvlm.video.reading import VideoSource

METHODS = ("uv", "attention", "specvlm", "novelty", "uniform", "random")
RATIOS = (0.0, 0.5, 0.75, 0.9, 0.95)
WINDOW = 5
"""Fixed, so that only the pruning differs between rows."""
PARTS = 32
"""Parts of a video, for the shares of the kept tokens. Shares by part can be averaged over clips of any length."""
AT_ONCE = 4
"""Concurrent answers. Acceptance does not depend on speed."""


class PruningRow(msgspec.Struct, frozen=True, kw_only=True):
    """Acceptance under one pruning, pooled over clips.

    ``acceptance_rate``: accepted over tested tokens. ``mean_accepted_length``: accepted tokens per rejection. ``kept``:
    mean share of the video tokens that the draft gets. ``kept_by_part``: share of the kept tokens in each of `PARTS`
    equal parts of the video, mean over clips. ``same_tokens``: whether every answer equals plain decoding.
    """

    prune: str
    ratio: float
    positions: str
    clips: int
    tokens: int
    acceptance_rate: float | None
    mean_accepted_length: float | None
    kept: float
    kept_by_part: tuple[float, ...]
    same_tokens: bool


async def measure_pruning(
    config: EngineConfig,
    videos: Sequence[VideoSource],
    question: str,
    *,
    methods: Iterable[str] = METHODS,
    ratios: Iterable[float] = RATIOS,
    on_row: Callable[[PruningRow], None] = lambda row: None,
) -> list[PruningRow]:
    """Answer ``question`` about every video under every pruning. Greedy decoding.

    Ratio 0 keeps everything, so it is one row for all methods. Raises ConfigError for an unknown method and OptionError
    for an invalid ratio, both before anything is loaded; OptionError also for a model whose video cannot be pruned.
    """
    methods = list(methods)
    settings = [(prune, ratio) for ratio in ratios for prune in (methods if ratio else ["none"])]
    for prune, ratio in settings:
        load_pruner(prune)
        answer_options({"prune_ratio": ratio})
    rows: list[PruningRow] = []
    async with Engine.create(msgspec.structs.replace(config, window=WINDOW, prefix_cache_bytes=0)) as engine:
        alone = [answer for answer, _ in await _answers(engine, videos, question, method="ar")]
        if not all(answer.stats.video_tokens for answer in alone):
            raise OptionError("no video token can be pruned with this model: take one whose family has a folder")
        plain = [answer.tokens for answer in alone]
        for prune, ratio in settings:
            answers = await _answers(engine, videos, question, prune=prune, prune_ratio=ratio)
            same = [answer.tokens for answer, _ in answers] == plain
            positions = "–" if ratio == 0 else "compact" if config.compact_positions else "original"
            rows.append(_row(prune, ratio, positions, answers, same))
            on_row(rows[-1])
    return rows


async def _answers(
    engine: Engine, videos: Sequence[VideoSource], question: str, **options: Any
) -> list[tuple[Answer, NDArray[np.float64]]]:
    """The answer about each video, and the share of the kept tokens in each part of it."""
    places = anyio.CapacityLimiter(AT_ONCE)

    async def ask(video: VideoSource) -> tuple[Answer, NDArray[np.float64]]:
        async with places:
            seen = KeptTokens()
            answer = await engine.answer(video, question, trace=seen, **options)
            return answer, by_part(seen.by_time())

    return await asyncio.gather(*(ask(video) for video in videos))


class KeptTokens:
    """A recorder of the video tokens that the draft got."""

    def __init__(self) -> None:
        self._times = 1
        self._mask = np.ones(1, np.bool_)

    def began(self, recorded: Recorded) -> None:
        (video,) = recorded.opening.visuals
        grid = recorded.processor.video_grid(video.pixels)
        self._times = grid[0]
        self._mask = np.ones(grid, np.bool_).ravel()

    def handled(self, event: Event, commands: Sequence[Command]) -> None:
        if isinstance(event, PruneMask) and event.kept < event.video_tokens:
            self._mask = unpack_mask(event.bits, event.video_tokens)

    def ended(self, answer: Answer) -> None:
        """Nothing to do: the mask has arrived before."""

    def by_time(self) -> NDArray[np.int64]:
        """Number of kept tokens at each moment of the video."""
        return np.asarray(self._mask.reshape(self._times, -1).sum(axis=1), np.int64)


def by_part(kept: NDArray[np.int64]) -> NDArray[np.float64]:
    """Share of all kept tokens in each of `PARTS` equal parts of a video, ``(PARTS,)``, from the numbers by moment."""
    upto = np.concatenate([[0.0], np.cumsum(kept) / kept.sum()])
    return np.diff(np.interp(np.linspace(0, len(kept), PARTS + 1), np.arange(len(kept) + 1), upto))


def _row(
    prune: str, ratio: float, positions: str, answers: Sequence[tuple[Answer, NDArray[np.float64]]], same: bool
) -> PruningRow:
    stats = [answer.stats for answer, _ in answers]
    acceptance = pooled_acceptance(stats)
    return PruningRow(
        prune=prune,
        ratio=ratio,
        positions=positions,
        clips=len(answers),
        tokens=sum(s.new_tokens for s in stats),
        acceptance_rate=acceptance.rate,
        mean_accepted_length=acceptance.mean_length,
        kept=sum(s.kept_video_tokens / s.video_tokens for s in stats) / len(stats),
        kept_by_part=tuple(np.mean([parts for _, parts in answers], axis=0).tolist()),
        same_tokens=same,
    )
