"""How often a lost actor is started again."""

from __future__ import annotations

import anyio
import pytest

from pvlm.runtime.restarts import Restarts


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Sleep passes on it at once."""
    clock = Clock()

    async def sleep(seconds: float) -> None:
        clock.now_s += seconds

    monkeypatch.setattr(anyio, "sleep", sleep)
    return clock


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def test_restarts_are_a_rate(clock: Clock) -> None:
    restarts = Restarts(2, 600.0, clock)
    for _ in range(5):
        restarts.spend()
        clock.now_s += 100
        assert not restarts.spent
        restarts.spend()
        assert restarts.spent
        clock.now_s += 499
        assert restarts.spent
        clock.now_s += 1
        assert not restarts.spent
        clock.now_s += 100


def test_no_restarts_at_all(clock: Clock) -> None:
    assert Restarts(0, 600.0, clock).spent


def test_a_loss_whose_cause_has_gone_does_not_count(clock: Clock) -> None:
    restarts = Restarts(1, 600.0, clock)
    restarts.refund()
    restarts.spend()
    restarts.refund()
    assert not restarts.spent


@pytest.mark.anyio
async def test_each_rest_takes_twice_as_long_up_to_ten_minutes(clock: Clock) -> None:
    restarts = Restarts(0, 600.0, clock)
    rests = []
    for _ in range(6):
        assert restarts.spent
        began_s = clock.now_s
        await restarts.rest()
        rests.append(clock.now_s - began_s)
        restarts.spend()
    assert rests == [60, 120, 240, 480, 600, 600]
    clock.now_s += 600
    assert restarts.spent  # after ten minutes without a loss
    began_s = clock.now_s
    await restarts.rest()
    assert clock.now_s - began_s == 60


@pytest.mark.anyio
async def test_the_time_of_the_next_try(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, seen = Clock(), list[float | None]()
    restarts = Restarts(0, 600.0, clock)

    async def sleep(seconds: float) -> None:
        clock.now_s += 15
        seen.append(restarts.next_try_s)

    monkeypatch.setattr(anyio, "sleep", sleep)
    assert restarts.next_try_s is None
    await restarts.rest()
    assert seen == [45]
    assert restarts.next_try_s is None
