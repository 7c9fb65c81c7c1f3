"""Answers that never have the target for themselves. Only the order of the given times counts."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from pvlm import Engine
from pvlm.bench.emulated import emulated_settings
from pvlm.coordination.events import ToTargetActor
from pvlm.trace import Trace
from pvlm_backends.emulated.backend import EmulatedBackend
from pvlm_protocols.messages import SetMode

pytestmark = pytest.mark.anyio

FRAMES = np.random.default_rng(0).integers(0, 255, (4, 64, 64, 3), dtype=np.uint8)
MODEL = {"prefill_ms": 2, "video_tokens": 32, "seed": 3}


class OwnPasses(EmulatedBackend):
    """Without `SharedPasses`."""

    extend_together = None  # type: ignore[assignment]


@pytest.mark.parametrize("shared", [True, False])
async def test_answers_at_once_get_drafts_on_a_fresh_engine(monkeypatch: pytest.MonkeyPatch, shared: bool) -> None:
    """The engine learns from passes of all of them how fast they are without a draft."""
    if not shared:
        monkeypatch.setattr("pvlm.workers.backends.find_backend", lambda name: OwnPasses)
    settings = emulated_settings({**MODEL, "pass_ms": 15}, {**MODEL, "pass_ms": 1, "acceptance": 0.95}, "inproc")
    traces = [Trace() for _ in range(3)]
    async with Engine.create(settings) as engine:
        assert engine.models["target"].shares_passes is shared
        answers = await asyncio.gather(*(engine.answer(FRAMES, "?", max_tokens=100, trace=trace) for trace in traces))
    assert len({answer.tokens for answer in answers}) == 1
    assert all(answer.stats.accepted_tokens for answer in answers)
    for trace in traces:  # a probe may be accepted while the target still decodes by itself
        told = [
            command.message
            for handled in trace.recording().handled
            for command in handled.commands
            if isinstance(command, ToTargetActor)
        ]
        assert any(isinstance(message, SetMode) and message.mode != "alone" for message in told)
