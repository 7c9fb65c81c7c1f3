"""Videos that stay: several questions on one video, from two models that keep what they have seen of it."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pvlm import Engine, EngineStateError, OptionError, VideoError
from pvlm.bench.emulated import emulated_settings
from pvlm.runtime.pair import Pair
from pvlm.telemetry.metrics import (
    FAULTS,
    PREFIX_BYTES,
    PREFIX_EVICTIONS,
    PREFIX_HITS,
    PREFIX_QUERIES,
    PREFIXES,
    VIDEOS,
    Metric,
)
from pvlm.video import process
from tests.engine.conftest import Sample

pytestmark = pytest.mark.anyio
MODEL = {"pass_ms": 0.2, "layers": 4, "video_tokens": 40, "answer_tokens": 6}
SETTINGS = {**emulated_settings(MODEL, {**MODEL, "acceptance": 0.8}, "inproc"), "prefix_cache_bytes": 1 << 20}
QUESTIONS = ("What is it?", "And why is that?", "Where does it go after that?")


class Counted:
    """Metrics that remember their values, and the largest of each."""

    def __init__(self) -> None:
        self.values: Counter[tuple[str, str]] = Counter()
        self.most: dict[tuple[str, str], float] = {}

    def add(self, metric: Metric, amount: float = 1.0, **labels: str) -> None:
        key = metric.name, ",".join(labels.values())
        self.values[key] += amount  # type: ignore[assignment]
        self.most[key] = max(self.most.get(key, 0.0), self.values[key])

    def observe(self, metric: Metric, value: float, **labels: str) -> None:
        """Nothing to count."""

    def of(self, metric: Metric, label: str) -> float:
        return self.values[metric.name, label]


def video(number: int) -> np.ndarray:
    return np.full((2, 4, 4, 3), number, np.uint8)


async def test_the_text_is_that_of_an_engine_that_keeps_nothing(small: Engine, samples: list[Sample]) -> None:
    """By every method, and however the methods follow each other."""
    sample = samples[3]
    questions = (sample.question, "List the objects in order.")
    async with Engine.create(small.config, prefix_cache_bytes=0) as fresh:
        for method in ("ar", "sd", "parallel"):
            for question in questions:
                options: dict[str, Any] = {"method": method, "max_tokens": 24}
                expected = await fresh.answer(sample.path, question, **options)
                found = await small.answer(sample.path, question, **options)
                assert found.tokens == expected.tokens
                assert expected.stats.cached_tokens == 0
                if question != questions[0]:
                    assert found.stats.cached_tokens > found.stats.video_tokens > 0


async def test_a_video_is_read_once(samples: list[Sample], tmp_path: Path) -> None:
    """By its content: neither its name nor its date counts. Other frames of it are read again."""
    metrics, copy = Counted(), tmp_path / "copy.mp4"
    copy.write_bytes(samples[0].path.read_bytes())
    other = samples[1].path.read_bytes()
    async with Engine.create(SETTINGS, metrics=metrics) as engine:
        for source in (samples[0].path, copy, copy.read_bytes()):
            await engine.answer(source, "What?")
        assert (metrics.of(VIDEOS, "read"), metrics.of(VIDEOS, "kept")) == (1, 2)
        await engine.answer(copy, "What?", num_frames=3)
        copy.write_bytes(other)
        answer = await engine.answer(copy, "What?")
        assert (metrics.of(VIDEOS, "read"), metrics.of(VIDEOS, "kept")) == (3, 2)
        assert answer.stats.source_frames == len(samples[1].frames)
        await asyncio.gather(*(engine.answer(copy, "What?", num_frames=2) for _ in range(3)))
        assert (metrics.of(VIDEOS, "read"), metrics.of(VIDEOS, "kept")) == (4, 4)
        with pytest.raises(VideoError):
            await engine.answer(b"no video", "What?")


async def test_a_clip_is_read_once_and_stays() -> None:
    """Others come and go beside it."""
    metrics = Counted()
    async with Engine.create(SETTINGS, metrics=metrics, prefix_cache_bytes=9000) as engine:
        async with engine.watch(video(0)) as clip:
            assert (await clip.answer(QUESTIONS[0], max_tokens=4)).stats.cached_tokens == 0
            for number in range(1, 6):
                await engine.answer(video(number), QUESTIONS[0])
            async with clip.stream(QUESTIONS[1]) as chunks:
                pieces = [chunk.text async for chunk in chunks]
            assert "".join(pieces) == chunks.answer.text
            assert chunks.answer.stats.cached_tokens == 44
        assert metrics.of(VIDEOS, "read") == 6
        assert metrics.of(PREFIX_EVICTIONS, "target") > 0
        with pytest.raises(EngineStateError, match="not open"):
            await clip.answer(QUESTIONS[0])
        with pytest.raises(EngineStateError, match="once"):
            await clip.__aenter__()
        for number in range(1, 6):
            await engine.answer(video(number), QUESTIONS[0])
        assert (await engine.answer(video(0), QUESTIONS[2])).stats.cached_tokens == 0
        with pytest.raises(OptionError, match="unknown option"):
            engine.watch(video(0), frames=3)  # type: ignore[call-arg]
    with pytest.raises(EngineStateError, match="not open"):
        await Engine.create(SETTINGS).watch(video(0)).__aenter__()


async def test_a_lost_worker_loses_its_prefixes_and_no_answer(bombs: set[str]) -> None:
    """A clip is pinned in the next one again."""
    metrics = Counted()
    async with Engine.create(SETTINGS, metrics=metrics) as engine, engine.watch(video(0)) as clip:
        expected = (await clip.answer(QUESTIONS[0])).tokens
        for role in ("target", "draft"):
            bombs.add(role)
            async with clip.stream(QUESTIONS[1]) as chunks:
                tokens = [token async for chunk in chunks for token in chunk.tokens]
            assert tuple(tokens) == expected
            while bombs or len(engine.models) < 2:
                await asyncio.sleep(0.01)
        assert (await clip.answer(QUESTIONS[2])).tokens == expected
        assert (await clip.answer(QUESTIONS[1])).stats.cached_tokens == 44
        actors = engine._residence.pair._actors  # type: ignore[union-attr]
        while not all((kept := actor._contact.actor.kept) and kept.count for actor in actors.values()):
            await clip.answer(QUESTIONS[1])  # a draft that came late has taken no part yet
    assert metrics.of(FAULTS, "worker_lost,target") == metrics.of(FAULTS, "worker_lost,draft") == 1
    assert metrics.of(PREFIX_BYTES, "target") == metrics.of(PREFIX_BYTES, "draft") == 0


@pytest.mark.parametrize("questions", [60, pytest.param(1000, marks=pytest.mark.chaos)])
async def test_many_questions_on_five_videos(questions: int) -> None:
    """Four at a time, with room for about three of the videos, and some callers leave."""
    bound, metrics, rng = 9000, Counted(), random.Random(1)
    asked, found, left = Counter[str](), Counter[str](), 0
    async with Engine.create(SETTINGS, metrics=metrics, prefix_cache_bytes=bound) as engine:

        async def ask(number: int) -> None:
            nonlocal left
            async with engine.stream(video(rng.randrange(5)), f"What is number {number}?") as chunks:
                if rng.random() < 0.1:
                    left += 1
                    return
                async for _ in chunks:
                    pass
            asked["tokens"] += chunks.answer.stats.prompt_tokens
            found["tokens"] += chunks.answer.stats.cached_tokens

        for first in range(0, questions, 4):
            await asyncio.gather(*map(ask, range(first, first + 4)))
        pair: Any = engine._pair
        assert isinstance(pair, Pair)
        assert metrics.of(PREFIX_QUERIES, "target") >= asked["tokens"]
        if not left:
            assert metrics.of(PREFIX_HITS, "target") == found["tokens"]
        for role in ("target", "draft"):
            assert 0 < metrics.most[PREFIX_BYTES.name, role] <= bound
            assert metrics.of(PREFIX_HITS, role) > 0
        assert metrics.of(PREFIX_EVICTIONS, "target") > 0
        assert metrics.most[PREFIXES.name, "target"] <= 5
    for role in ("target", "draft"):
        assert (metrics.of(PREFIXES, role), metrics.of(PREFIX_BYTES, role)) == (0, 0)


async def test_decoders_are_started_ahead_and_serve_one_video_each(
    samples: list[Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[Any] = []
    original = process.Decoders.take

    async def take(self: Any) -> Any:
        taken.append((await original(self), self._spare))
        return taken[-1][0]

    monkeypatch.setattr(process.Decoders, "take", take)
    async with Engine.create(SETTINGS) as engine:
        decoders = engine._residence.sights.decoders  # type: ignore[union-attr]
        for sample in samples[:3]:
            await engine.answer(sample.path, "What?")
            while decoders._starting is not None:
                await asyncio.wait([decoders._starting])
            spare = decoders._spare
            assert spare is not None
            assert spare.fit
    assert [decoder for decoder, _ in taken[1:]] != [decoder for decoder, _ in taken[:-1]]
    assert len({id(decoder) for decoder, _ in taken}) == 3
    assert not spare.fit
