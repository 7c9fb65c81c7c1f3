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
    plan = Plan(seconds=6.0, seed=1, rest_every_s=6.0, kill_pause_s=(0.5, 2.0), cases=2)
    report = await soak(plan)
    assert report.wrong == []
    assert report.leaked == []
    assert sum(report.compared.values()) >= 1  # few on a busy machine
    kills = {role: len(when) for role, when in report.kills.items()}
    assert sum(kills.values()) >= 1
    assert report.restarts == kills
    assert {role: report.faults.get(f"worker_lost {role}", 0) for role in kills} == kills
    assert {sample.role for sample in report.samples} == {"host", "target", "draft"}
    host = [sample for sample in report.samples if sample.role == "host"]
    assert host[-1].descriptors <= host[0].descriptors
    assert f"{report.answers} answers" in summary(report)[0]
    plot(report, tmp_path / "soak.png")
    assert (tmp_path / "soak.png").read_bytes().startswith(b"\x89PNG")


def samples(resident: list[int], descriptors: int | list[int] = 9, role: str = "host", pid: int = 1) -> list[Sample]:
    """One every 20 s."""
    files = descriptors if isinstance(descriptors, list) else [descriptors] * len(resident)
    pairs = zip(resident, files, strict=True)
    return [Sample(20.0 * n, 20.0 * n, role, pid, memory, count) for n, (memory, count) in enumerate(pairs)]


@pytest.mark.parametrize(
    ("resident", "descriptors", "growth", "more"),
    [
        ([100, 150, 150, 150, 150, 151, 149, 150, 150], 9, 0.0, 0),  # what it takes to warm up does not count
        ([100, 150, 150, 150, 150, 150, 160, 150, 150], 9, 0.0, 0),  # nor does what was given back
        ([100, 150, 150, 150, 151, 152, 153, 153, 153], 9, 0.02, 0),
        ([100, 150, 150, 150, 150, 150, 150, 150, 150], [9, 9, 9, 9, 10, 10, 11, 11, 11], 0.0, 2),
    ],
)
def test_growth_is_that_behind_the_warm_up(
    resident: list[int], descriptors: int | list[int], growth: float, more: int
) -> None:
    (found,) = growths(samples(resident, descriptors), host_warm_up_s=20.0, worker_warm_up_s=1000.0)
    assert (found.resident, found.descriptors, found.seconds) == (pytest.approx(growth), more, 140.0)


def test_each_process_is_compared_with_itself() -> None:
    """A new worker is warmed up anew, and one that has not lived for long says nothing."""
    two = [
        *samples([50, 50, 50, 300, 300, 300, 303, 303, 303], role="draft", pid=2),
        *samples([50, 50, 50, 300, 300, 900, 900], role="draft", pid=3),
    ]
    (found,) = growths(two, host_warm_up_s=0.0, worker_warm_up_s=60.0)
    assert (found.pid, found.resident) == (2, pytest.approx(0.01))
