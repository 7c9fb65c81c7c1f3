"""Is parallel decoding ever slower than plain decoding, than itself without outcomes, or than taking turns?

Each clip is answered by every method in every round, in an order that alternates, by one engine. The decoding time of a
method on a clip is the median over the rounds. The figure is the mean, over the clips, of the ratio of two methods'
times, with its 95% interval.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean, median, stdev
from typing import Any

import msgspec
import numpy as np

from pvlm.config import EngineConfig
from pvlm.engine import Engine
from pvlm.errors import OptionError

METHODS: dict[str, dict[str, Any]] = {
    "ar": {"method": "ar"},
    "parallel": {"method": "parallel", "window": "auto"},
    "no outcomes": {"method": "parallel", "window": "auto", "outcomes": 0},
    "sd": {"method": "sd"},
}
COMPARED = (("parallel", "ar"), ("parallel", "no outcomes"), ("parallel", "sd"), ("sd", "ar"))
"""The speed of the first over the speed of the second."""
QUESTION = "Describe the video."
_T_975 = 2.0
"""Of Student's distribution, for 30 and more clips."""


class SpeedRow(msgspec.Struct, frozen=True, kw_only=True):
    """The speed of ``method`` over that of ``against`` in decoding: the mean over the clips, ± ``half`` its 95%
    interval. ``lowest``: of one clip. ``same_tokens``: all answers have the same tokens.
    """

    method: str
    against: str
    ratio: float
    half: float
    lowest: float
    clips: int
    rounds: int
    rests: float
    windows: float
    same_tokens: bool


async def measure_speeds(
    config: EngineConfig, clips: Sequence[np.ndarray], *, rounds: int, max_tokens: int, on_turn: Callable[[float], None]
) -> list[SpeedRow]:
    """Answer ``QUESTION`` about every clip by every method. ``on_turn`` gets the finished fraction."""
    times: dict[str, list[list[float]]] = {name: [[] for _ in clips] for name in METHODS}
    rests: dict[str, list[int]] = {name: [] for name in METHODS}
    windows: dict[str, list[int]] = {name: [] for name in METHODS}
    expected: dict[int, tuple[int, ...]] = {}
    same = True
    async with Engine.create(config, method="parallel", prefix_cache_bytes=0) as engine:
        for number in range(-1, rounds):  # the first does not count, and takes two clips
            for index, clip in enumerate(clips if number >= 0 else clips[:2]):
                first = (number + index) % len(METHODS)
                names = list(METHODS)
                for name in names[first:] + names[:first]:
                    answer = await engine.answer(clip, QUESTION, max_tokens=max_tokens, **METHODS[name])
                    same &= answer.tokens == expected.setdefault(index, answer.tokens)
                    if number >= 0:
                        times[name][index].append(answer.stats.decode_s)
                        rests[name].append(answer.stats.rests)
                        windows[name].append(len(answer.stats.windows))
                on_turn((max(0, number) * len(clips) + index + 1) / (rounds * len(clips)))
    rows = []
    for method, against in COMPARED:
        pairs = zip(times[against], times[method], strict=True)
        ratios = [median(theirs) / median(ours) for theirs, ours in pairs]
        rows.append(
            SpeedRow(
                method=method,
                against=against,
                ratio=fmean(ratios),
                half=_T_975 * stdev(ratios) / math.sqrt(len(ratios)),
                lowest=min(ratios),
                clips=len(clips),
                rounds=rounds,
                rests=fmean(rests[method]),
                windows=fmean(windows[method]),
                same_tokens=same,
            )
        )
    return rows


def drawn_clips(count: int, seed: int = 8) -> list[np.ndarray]:
    """Clips of one to four scenes, as uint8 ``(T, H, W, 3)``. Raises OptionError outside of the repository."""
    import sys

    sys.path.append(str(Path(__file__).parents[1] / "recipes"))
    try:
        from shapes.rendering import render
        from shapes.world import sample_clip
    except ImportError as error:
        raise OptionError(f"clips are drawn by the repository's recipes, which cannot be imported: {error}") from error
    source = random.Random(seed)
    return [render(sample_clip(source, (1, 2, 4)[index % 3])) for index in range(count)]
