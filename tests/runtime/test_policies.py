"""Which answers of an engine learn from each other about windows."""

from __future__ import annotations

import pytest

from pvlm import EngineConfig
from pvlm.runtime.pair import POLICIES, Runtime
from pvlm.telemetry.reporter import Reporter
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


@pytest.mark.anyio
async def test_what_was_learned_last_is_kept_and_no_more_than_there_is_room_for() -> None:
    """Callers may choose any ratio, and an engine runs for long."""
    runtime = Runtime(EngineConfig(), lambda role, fraction: None, Reporter())
    schedule = runtime.schedule("parallel")

    def policy(ratio: float) -> object:
        return runtime.window_policy(schedule, Pruning(method="uv", ratio=ratio), "auto")

    first, second = policy(0.0), policy(0.1)
    for index in range(POLICIES - 1):
        assert policy(0.0) is first
        policy(0.2 + index / 1000)
    assert policy(0.0) is first
    assert policy(0.1) is not second
