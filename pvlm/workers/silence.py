"""When something that should give signs of life has given none for too long."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import anyio

BEATS = 5
"""How often it is looked for a sign within the time after which silence is a hang."""


async def silence(timeout_s: float, sign: Callable[[], object]) -> None:
    """Return when ``sign`` has returned the same for ``timeout_s``.

    Silent beats are counted, not seconds: while this process is stopped or its event loop is blocked, nothing is heard,
    and nothing hangs.
    """
    silent, last = 0, sign()
    while silent < BEATS:
        await anyio.sleep(timeout_s / BEATS)
        now = sign()
        silent, last = (0 if now != last else silent + 1), now


def computed(pid: int | str, thread: int | None = None) -> int:
    """Clock ticks and page faults of a process and its children, or of one of its threads; 0: it has ended.

    A model may load without a report of progress, and a native backend compiles first. Neither is a hang.
    """
    folder = Path(f"/proc/{pid}" if thread is None else f"/proc/{pid}/task/{thread}")
    try:
        fields = (folder / "stat").read_text().rpartition(")")[2].split()
        ticks = sum(int(field) for field in fields[7:15])  # faults and times, also of children that have ended
        if thread is None:
            children = " ".join(each.read_text() for each in folder.glob("task/*/children")).split()
            ticks += sum(computed(child) for child in children)
    except OSError:
        return 0
    return ticks
