"""A script in the models' place, for the comparison of methods and of numbers of frames."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pvlm import EngineConfig
from pvlm.bench import comparison, scaling
from pvlm.bench.methods import CONTENDERS, Clip, Contender, Measurement
from pvlm.config import bundled

CLIPS = Path(bundled("clips"))
CLIP = Clip(np.zeros((2, 4, 4, 3), np.uint8), (0.0, 1.0), "?")


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Script:
    """Stands in for the models: what each method answers, how fast, and who was asked when."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.decode_s = dict.fromkeys(CONTENDERS, 1.0)
        self.tokens = dict.fromkeys(CONTENDERS, (1, 2, 3))

    def __call__(self, config: EngineConfig, chosen: Sequence[Contender], max_tokens: int) -> Script:
        return self

    async def __aenter__(self) -> Script:
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

    @property
    def pair(self) -> Any:
        class Pair:
            models = {"target": type("Info", (), {"layers": 6})}  # noqa: RUF012

        return Pair

    async def answer(self, contender: Contender, clip: Clip) -> Measurement:
        self.asked.append(contender.name)
        drafted = contender.drafts
        return Measurement(
            tokens=self.tokens[contender.name],
            prefill_s=1.0,
            decode_s=self.decode_s[contender.name],
            first_token_s=1.0,
            peak_mb=10.0,
            windows=(4, 2) if drafted else (),
            accepted_tokens=4 if drafted else 0,
            rejected_tokens=1 if drafted else 0,
            target_pass_ms=8.0,
            target_passes_ms=((1, 10.0), (8, 10.0)),
            draft_token_ms=1.0 if drafted else None,
        )


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Script:
    script = Script()

    async def time_passes(passes: Any, stats_of: Any) -> None:
        passes.observe(1, 8.0)

    monkeypatch.setattr(comparison, "OpenContenders", script)
    monkeypatch.setattr(comparison, "time_passes", time_passes)
    monkeypatch.setattr(scaling, "OpenContenders", script)
    return script
