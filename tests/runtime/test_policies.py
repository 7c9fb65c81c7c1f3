"""Which answers of an engine learn from each other about windows."""

from __future__ import annotations

import pytest

from pvlm import EngineConfig
from pvlm.reporting import Reporter
from pvlm.runtime import Runtime
from pvlm_protocols.messages import Pruning


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.mark.anyio
async def test_what_is_learned_holds_for_the_same_schedule_and_the_same_pruning() -> None:
    runtime = Runtime(EngineConfig(), lambda role, fraction: None, Reporter())
    parallel, turns = runtime.schedule("parallel"), runtime.schedule("parallel", parallel_decode=False)
    half = Pruning(method="uv", ratio=0.5)
    policy = runtime.window_policy(parallel, half, "auto")
    assert runtime.window_policy(parallel, Pruning(method="uv", ratio=0.5, seed=7), "auto") is policy
    assert runtime.window_policy(turns, half, "auto") is not policy
    assert runtime.window_policy(parallel, Pruning(method="uniform", ratio=0.5), "auto") is not policy
    assert runtime.window_policy(parallel, Pruning(method="uv", ratio=0.9), "auto") is not policy
    assert runtime.window_policy(parallel, half, 5) is not runtime.window_policy(parallel, half, 5)
