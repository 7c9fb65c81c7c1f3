"""Peak memory of processes."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

_RESET_PEAK = "5"
"""Linux, proc(5), /proc/pid/clear_refs: set the peak to the memory that is resident now."""


def reset_peak(processes: Iterable[int]) -> None:
    """Reset the peak of each process's memory to the present value. See `peak_mb`."""
    for process in processes:
        (Path("/proc") / str(process) / "clear_refs").write_text(_RESET_PEAK)


def peak_mb(processes: Iterable[int]) -> float:
    """The peak of each process's resident memory since `reset_peak`, summed over the processes, in MB.

    Pages that processes share (the code of torch) count in each of them.
    """
    return sum(_peak_kib(process) for process in set(processes)) * 1024 / 1e6


def _peak_kib(process: int) -> int:
    for line in (Path("/proc") / str(process) / "status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1])
    raise ProcessLookupError(f"process {process} has ended")
