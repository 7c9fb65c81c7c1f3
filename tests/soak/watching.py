"""What a soak sees of its processes: resident memory and file descriptors, at rest, and whether they grow."""

from __future__ import annotations

from collections.abc import Iterable
from statistics import median

import msgspec
import psutil

MEGABYTE = 1e6
SAMPLES = 3
"""The first and the last so many are compared, by their medians."""
WORKER_WARM_UP_S = 60.0
"""A worker that is younger has not seen every kind of question yet."""


class Sample(msgspec.Struct, frozen=True):
    """One process at rest: no answer is being written. ``at_s``: since the soak began; ``alive_s``: since it was seen
    first; ``resident``: bytes; ``descriptors``: open files.
    """

    at_s: float
    alive_s: float
    role: str
    pid: int
    resident: int
    descriptors: int


class Growth(msgspec.Struct, frozen=True):
    """How a process has grown since its warm-up, by the medians of the first and the last `SAMPLES` after it."""

    role: str
    pid: int
    seconds: float
    resident: float
    """A share: 0.01 is one percent."""
    descriptors: int


class Watch:
    """Takes samples of processes by role."""

    def __init__(self) -> None:
        self.samples: list[Sample] = []
        self._first_seen_s: dict[int, float] = {}

    def look(self, at_s: float, pids: dict[str, int]) -> None:
        for role, pid in pids.items():
            process = psutil.Process(pid)
            first = self._first_seen_s.setdefault(pid, at_s)
            with process.oneshot():
                resident = process.memory_info().rss
            self.samples.append(Sample(at_s, at_s - first, role, pid, resident, process.num_fds()))


def growths(samples: Iterable[Sample], host_warm_up_s: float, worker_warm_up_s: float) -> list[Growth]:
    """Of each process that was seen for long enough after its warm-up."""
    of_process: dict[int, list[Sample]] = {}
    for sample in samples:
        if sample.alive_s >= (host_warm_up_s if sample.role == "host" else worker_warm_up_s):
            of_process.setdefault(sample.pid, []).append(sample)
    found = []
    for seen in of_process.values():
        first, last = seen[:SAMPLES], seen[-SAMPLES:]
        if len(seen) >= 2 * SAMPLES:
            before, now = (median(sample.resident for sample in samples) for samples in (first, last))
            open_before, open_now = (median(sample.descriptors for sample in samples) for samples in (first, last))
            lived_s = seen[-1].at_s - seen[0].at_s
            found.append(Growth(seen[0].role, seen[0].pid, lived_s, now / before - 1, int(open_now - open_before)))
    return found
