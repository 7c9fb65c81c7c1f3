"""The machinery of `make soak`, for some seconds; what it says of memory needs the half hour."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.soak.__main__ import summary
from tests.soak.plotting import plot
from tests.soak.soak import Plan, soak
from tests.soak.watching import Sample, growths


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.mark.anyio
async def test_some_seconds_of_it(tmp_path: Path) -> None:
    """Every answer is its reference while workers are killed, and they are all started again."""
    plan = Plan(seconds=8.0, seed=1, rest_every_s=4.0, kill_pause_s=(0.5, 3.0), host_warm_up_s=0.0, cases=4)
    report = await soak(plan)
    assert report.wrong == []
    assert report.leaked == []
    assert sum(report.compared.values()) > 5
    kills = {role: len(when) for role, when in report.kills.items()}
    assert sum(kills.values()) >= 2
    assert report.restarts == kills
    assert {role: report.faults.get(f"worker_lost {role}", 0) for role in kills} == kills
    assert {sample.role for sample in report.samples} == {"host", "target", "draft"}
    host = next(one for one in report.growth if one.role == "host")
    assert host.descriptors == 0
    assert len(summary(report)) > 5
    plot(report, tmp_path / "soak.png")
    assert (tmp_path / "soak.png").read_bytes().startswith(b"\x89PNG")


def samples(role: str, resident: list[int], descriptors: list[int], pid: int = 1) -> list[Sample]:
    """One every 20 s."""
    pairs = zip(resident, descriptors, strict=True)
    return [Sample(20.0 * n, 20.0 * n, role, pid, memory, files) for n, (memory, files) in enumerate(pairs)]


@pytest.mark.parametrize(
    ("resident", "descriptors", "growth"),
    [
        ([100, 150, 150, 151, 150], [9, 9, 9, 9, 9], (1 / 150, 0)),  # what it takes to warm up does not count
        ([100, 150, 150, 170, 150], [9, 9, 9, 9, 9], (20 / 150, 0)),
        ([100, 150, 150, 150, 150], [9, 9, 9, 9, 10], (0.0, 1)),
    ],
)
def test_growth_is_that_behind_the_warm_up(
    resident: list[int], descriptors: list[int], growth: tuple[float, int]
) -> None:
    (found,) = growths(samples("host", resident, descriptors), host_warm_up_s=20.0, worker_warm_up_s=60.0)
    assert (found.resident, found.descriptors) == pytest.approx(growth)
    assert found.seconds == 60.0


def test_each_process_is_compared_with_itself() -> None:
    """A new worker is warmed up anew, and one that has not lived as long says nothing."""
    three = (
        samples("draft", [100, 200, 200, 200], [9] * 4, pid=2)
        + samples("draft", [50, 300, 300, 300, 303], [9] * 5, pid=3)
        + samples("draft", [50, 900], [9] * 2, pid=4)
    )
    (found,) = growths(three, host_warm_up_s=0.0, worker_warm_up_s=60.0)
    assert (found.pid, found.resident) == (3, pytest.approx(0.01))
