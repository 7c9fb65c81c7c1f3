"""How well the draft does on the video tokens that a pruner leaves it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import msgspec

from pvlm.config import EngineConfig
from pvlm.engine import Engine
from pvlm.results import Answer, ratio_or_none

WINDOW = 5
"""Fixed, so that the rows differ in nothing but the pruning."""


class PruningRow(msgspec.Struct, frozen=True, kw_only=True):
    """Acceptance under one pruning, pooled over clips.

    ``acceptance_rate``: accepted over tested tokens. ``mean_accepted_length``: accepted tokens a rejection. ``kept``:
    mean share of the video tokens that the draft saw. ``same_tokens``: whether every answer equals plain decoding.
    """

    prune: str
    ratio: float
    positions: str
    clips: int
    tokens: int
    acceptance_rate: float | None
    mean_accepted_length: float | None
    kept: float
    same_tokens: bool


async def measure_pruning(
    config: EngineConfig,
    videos: Sequence[str],
    question: str,
    *,
    methods: Iterable[str],
    ratios: Iterable[float],
    on_row: Callable[[PruningRow], None] = lambda row: None,
) -> list[PruningRow]:
    """Answer ``question`` about every video under every pruning, with both position rules. Greedy decoding.

    Ratio 0 keeps everything, so it is one row whatever the method and the positions.
    """
    rows: list[PruningRow] = []
    plain: dict[str, tuple[int, ...]] = {}
    settings = list(_settings(methods, ratios))
    for compact in (False, True):
        changed = msgspec.structs.replace(config, compact_positions=compact, window=WINDOW)
        async with Engine.create(changed) as engine:
            for video in videos:
                if video not in plain:
                    plain[video] = (await engine.answer(video, question, method="ar")).tokens
            for prune, ratio in settings:
                if compact and ratio == 0:
                    continue
                answers = [await engine.answer(video, question, prune=prune, prune_ratio=ratio) for video in videos]
                same = all(answer.tokens == plain[video] for video, answer in zip(videos, answers, strict=True))
                positions = "–" if ratio == 0 else "compact" if compact else "original"
                rows.append(_row(prune, ratio, positions, answers, same))
                on_row(rows[-1])
    return rows


def _settings(methods: Iterable[str], ratios: Iterable[float]) -> Iterator[tuple[str, float]]:
    methods = list(methods)
    for ratio in ratios:
        if ratio == 0:
            yield "none", 0.0
        else:
            yield from ((method, ratio) for method in methods)


def _row(prune: str, ratio: float, positions: str, answers: list[Answer], same: bool) -> PruningRow:
    stats = [answer.stats for answer in answers]
    accepted, rejected = sum(s.accepted_tokens for s in stats), sum(s.rejected_tokens for s in stats)
    return PruningRow(
        prune=prune,
        ratio=ratio,
        positions=positions,
        clips=len(answers),
        tokens=sum(s.new_tokens for s in stats),
        acceptance_rate=ratio_or_none(accepted, accepted + rejected),
        mean_accepted_length=ratio_or_none(accepted, rejected),
        kept=sum(s.kept_video_tokens / s.video_tokens for s in stats) / len(stats),
        same_tokens=same,
    )
