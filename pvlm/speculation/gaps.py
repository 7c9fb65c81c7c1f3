"""The time between two passes of the target, and its parts. Imports no torch."""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

from pvlm_protocols.messages import DraftWindow, Verdict


class Gap(NamedTuple):
    """Time between the end of one pass of the target and the start of the next, in ms.

    ``coordination_ms``: the gap without the time in which the draft computed the tokens of the next pass, or finished a
    layer of an older token before a rollback took effect.
    ``transit_ms``: the time from the end of the pass's last window to the start of the pass, if the target was waiting
    for that window; else None.
    """

    ms: float
    coordination_ms: float
    transit_ms: float | None = None


class Gaps:
    """The gaps of one session, from the times in windows and verdicts.

    All times are on one clock. Those of a worker on another host have been converted to the engine's clock, with an
    error of up to half of a round trip.
    """

    def __init__(self) -> None:
        self._ended_s: float | None = None
        self._windows: deque[DraftWindow] = deque()

    def sent(self, window: DraftWindow) -> None:
        """A window has been sent to the target."""
        self._windows.append(window)

    def passed(self, verdict: Verdict) -> Gap | None:
        """The gap before the pass of a verdict; None for the first pass."""
        before, self._ended_s = self._ended_s, verdict.ended_s
        while self._windows and _end(self._windows[0]) <= verdict.start:
            self._windows.popleft()
        if before is None:
            return None
        began = verdict.ended_s - verdict.pass_ms / 1000
        waited, arrived = 0.0, before
        for window in self._windows:
            if window.start < verdict.start + verdict.window:
                arrived = max(arrived, window.ended_s)
                busy = [(window.began_s, window.ended_s)]
                busy += [(stopped.ended_s - stopped.draft_ms / 1000, stopped.ended_s) for stopped in window.stopped]
                waited += sum(max(0.0, min(began, until_s) - max(before, since_s)) for since_s, until_s in busy)
        gap = max(0.0, began - before)
        transit_ms = max(0.0, began - arrived) * 1000 if arrived > before else None
        return Gap(gap * 1000, max(0.0, gap - waited) * 1000, transit_ms)


def _end(window: DraftWindow) -> int:
    return window.start + len(window.tokens)
