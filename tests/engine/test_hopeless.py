"""A draft that is slower than its target: answers come to do without it. Only the order of the given times counts."""

from __future__ import annotations

import numpy as np
import pytest

from pvlm import Engine
from pvlm.bench.emulated import emulated_settings

pytestmark = pytest.mark.anyio

FRAMES = np.random.default_rng(0).integers(0, 255, (4, 64, 64, 3), dtype=np.uint8)
TARGET = {"pass_ms": 1.5, "prefill_ms": 2, "video_tokens": 32, "seed": 3}
ENOUGH = 80
"""Answers after which every one must have done without."""


async def test_an_engine_learns_to_answer_without_a_draft_that_is_too_slow() -> None:
    settings = emulated_settings(TARGET, {**TARGET, "pass_ms": 6, "acceptance": 0.9}, "inproc")
    async with Engine.create(settings) as engine:
        plain = await engine.answer(FRAMES, "?", max_tokens=48, method="ar")
        for _ in range(ENOUGH):
            answer = await engine.answer(FRAMES, "?", max_tokens=48)
            assert answer.tokens == plain.tokens
            if answer.stats.draft_prefill_ms is None:
                break
        assert answer.stats.draft_prefill_ms is None
        assert (answer.stats.drafted_tokens, answer.stats.draft_lost, answer.stats.method) == (0, "", "parallel")
        assert set(answer.stats.origins) == {"t"}
        drafted = await engine.answer(FRAMES, "?", max_tokens=48, method="sd")
        assert drafted.tokens == plain.tokens
        assert drafted.stats.drafted_tokens, "other methods use it as ever"
