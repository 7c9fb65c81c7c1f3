"""Where the time between two passes of the target goes. Imports no torch."""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

from pvlm_protocols.messages import DraftWindow, Verdict


class Gap(NamedTuple):
    """Between the end of one pass of the target and the start of the next, in ms.

    ``coordination_ms``: the gap less the time in which the draft was computing: the tokens that the pass then took in,
    and before them the layer of an older token that a rollback found it in.
    """

    ms: float
    coordination_ms: float


class Gaps:
    """The gaps of one session, from the times that windows and verdicts carry, which are all of one clock: those of a
    worker on another host have been put on the engine's, and are off by up to half of a round trip.
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
        waited = 0.0
        for window in self._windows:
            if window.start < verdict.start + verdict.window:
                busy = [(window.began_s, window.ended_s)]
                busy += [(stopped.ended_s - stopped.draft_ms / 1000, stopped.ended_s) for stopped in window.stopped]
                waited += sum(max(0.0, min(began, until_s) - max(before, since_s)) for since_s, until_s in busy)
        gap = max(0.0, began - before)
        return Gap(gap * 1000, max(0.0, gap - waited) * 1000)


def _end(window: DraftWindow) -> int:
    return window.start + len(window.tokens)
