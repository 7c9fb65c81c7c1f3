"""A second question about a video, compared with the first: what is kept is neither read nor prefilled again."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from io import BytesIO
from statistics import median
from typing import Any, NamedTuple

import msgspec
import numpy as np

from pvlm.bench.emulated import FRAMES, emulated_settings
from pvlm.bench.pairs import PAIRS, PRUNE_RATIO
from pvlm.bench.rows import pooled_acceptance
from pvlm.bench.sessions import emulated_models
from pvlm.config import BUNDLED, Method, Transport
from pvlm.engine import Engine
from pvlm.errors import OptionError
from pvlm.results import Answer

NAMES = (*(name for name, pair in PAIRS.items() if pair.target_prefill_ms is not None), BUNDLED)
"""The pairs that may be measured: the paper gives the time of their prefill, or they are real."""
FRAME_COUNTS = (64, 128)
"""Frames of the bundled pair's videos."""
QUESTIONS = ("What happens in the video?", "List the objects in order.", "Describe the video in detail.")
"""The first of a video, and those that follow."""
FRAMES_PER_SECOND = 4
NOT_ABOVE = 0.15
"""Required time to the first token of a further question, as a share of the first question's."""


class RepeatsRow(msgspec.Struct, frozen=True, kw_only=True):
    """One pair, with videos of ``frames`` frames (None: emulated).

    ``first_s``: time to the first token of the first question about a video, from the call, with the reading of the
    file. ``again_s``: the same of further questions. ``ratio``: the second over the first, a median over ``ratios``,
    which has one for each round. ``cached_tokens``: of ``prompt_tokens``, those that the target had kept.
    ``acceptance``: of further questions, whose draft sees the video as for the first one; ``fresh_acceptance``: of the
    same questions, if the draft sees it as for each of them. ``same_tokens``: whether each answer is that of an engine
    that keeps nothing. Times are the models' own: measured times over ``time_scale``.
    """

    pair: str
    method: Method
    frames: int | None
    first_s: float
    again_s: float
    ratio: float
    ratios: tuple[float, ...]
    prompt_tokens: int
    cached_tokens: int
    acceptance: float | None
    fresh_acceptance: float | None
    same_tokens: bool
    time_scale: float | None
    transport: Transport
    backend: str

    @property
    def passed(self) -> bool:
        return self.ratio <= NOT_ABOVE


class _Case(NamedTuple):
    """``videos``: one for each round, and one before them to warm up."""

    pair: str
    frames: int | None
    settings: dict[str, Any]
    options: dict[str, Any]
    videos: Sequence[Any]
    scale: float


async def measure_repeats(
    pairs: Iterable[str],
    clip: str = "",
    *,
    frames: Sequence[int] = FRAME_COUNTS,
    method: Method = "parallel",
    tokens: int = 64,
    rounds: int = 3,
    time_scale: float = 0.1,
    backend: str | None = None,
    transport: Transport = "ipc",
    on_row: Callable[[RepeatsRow], None] = lambda row: None,
) -> list[RepeatsRow]:
    """Measure each pair: the bundled one with each number of frames.

    ``pairs``: of `NAMES`. ``clip``: path of a video for the bundled pair, which ``backend`` runs; longer videos repeat
    its frames. ``tokens``: of each answer.

    Raises OptionError if a number is too small.
    """
    for name, value in (("tokens", tokens), ("rounds", rounds), ("frames", min(frames))):
        if value < 1:
            raise OptionError(f"{name} is {value}: it must be at least 1")
    rows: list[RepeatsRow] = []
    for pair in pairs:
        for case in _cases(pair, clip, frames, tokens, rounds, time_scale, backend, transport):
            rows.append(await _measure(case, method, transport))
            on_row(rows[-1])
    return rows


def _cases(
    pair: str,
    clip: str,
    frames: Sequence[int],
    tokens: int,
    rounds: int,
    time_scale: float,
    backend: str | None,
    transport: Transport,
) -> Iterable[_Case]:
    if pair != BUNDLED:
        target, draft = emulated_models(PAIRS[pair], {"time_scale": time_scale})
        settings = {**emulated_settings(target, draft, transport), "prefix_cache_bytes": None}
        options = {"max_tokens": tokens, "prune": "uv", "prune_ratio": PRUNE_RATIO}
        videos = [np.full_like(FRAMES, number) for number in range(rounds + 1)]
        yield _Case(pair, None, settings, options, videos, time_scale)
        return
    settings = {"transport": transport, **({} if backend is None else {"backend": backend})}
    for count in frames:
        files = [_video(clip, count, number) for number in range(rounds + 1)]
        yield _Case(pair, count, settings, {"max_tokens": tokens, "num_frames": count}, files, 1.0)


def _video(clip: str, count: int, number: int) -> bytes:
    """An mp4 file of ``count`` frames of a clip, which begins with frame ``number`` and goes round."""
    import av

    with av.open(clip) as source:
        frames = [frame.to_ndarray(format="rgb24") for frame in source.decode(video=0)]
    encoded = BytesIO()
    with av.open(encoded, mode="w", format="mp4") as file:
        stream = file.add_stream("libx264", rate=FRAMES_PER_SECOND)
        height, width, _ = frames[0].shape
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        for index in range(number, number + count):
            file.mux(stream.encode(av.VideoFrame.from_ndarray(frames[index % len(frames)], format="rgb24")))
        file.mux(stream.encode())
    return encoded.getvalue()


async def _measure(case: _Case, method: Method, transport: Transport) -> RepeatsRow:
    async def ask(engine: Engine, video: Any, question: str) -> Answer:
        return await engine.answer(video, question, method=method, **case.options)

    fresh: list[list[Answer]] = []
    async with Engine.create(case.settings, prefix_cache_bytes=0) as engine:
        for video in case.videos[1:]:
            fresh.append([await ask(engine, video, question) for question in QUESTIONS])
    kept: list[list[Answer]] = []
    async with Engine.create(case.settings) as engine:
        for video in case.videos:
            kept.append([await ask(engine, video, question) for question in QUESTIONS])
    kept = kept[1:]  # without the warm-up
    firsts = [answers[0].stats.time_to_first_token_s for answers in kept]
    agains = [median(answer.stats.time_to_first_token_s for answer in answers[1:]) for answers in kept]
    ratios = tuple(again / first for again, first in zip(agains, firsts, strict=True))
    last = kept[-1][-1].stats
    return RepeatsRow(
        pair=case.pair,
        method=method,
        frames=case.frames,
        first_s=median(firsts) / case.scale,
        again_s=median(agains) / case.scale,
        ratio=median(ratios),
        ratios=ratios,
        prompt_tokens=last.prompt_tokens,
        cached_tokens=last.cached_tokens,
        acceptance=_acceptance(kept),
        fresh_acceptance=_acceptance(fresh),
        same_tokens=[[answer.tokens for answer in answers] for answers in fresh]
        == [[answer.tokens for answer in answers] for answers in kept],
        time_scale=None if case.frames is not None else case.scale,
        transport=transport,
        backend=kept[-1][-1].stats.target_backend,
    )


def _acceptance(answers: Iterable[Sequence[Answer]]) -> float | None:
    """Of the questions after the first of each video."""
    return pooled_acceptance(answer.stats for some in answers for answer in some[1:]).rate
