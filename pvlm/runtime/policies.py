"""The window policies that the answers of one engine share."""

from __future__ import annotations

from pvlm.config import WindowSetting
from pvlm.speculation.windows import AutoWindow, FixedWindow, WindowPolicy
from pvlm_protocols.messages import Pruning, Schedule

POLICIES = 64
"""The largest number of policies that are kept."""


class WindowPolicies:
    """Keeps each policy that learns, for the next answer of the same kind. Drops the least recently used."""

    def __init__(self) -> None:
        self._kept: dict[tuple[Schedule, str, float], WindowPolicy] = {}

    def policy(self, schedule: Schedule, pruning: Pruning, window: WindowSetting) -> WindowPolicy:
        """The policy of one answer. Answers share a policy if schedule, pruner and pruning ratio are the same."""
        if window != "auto":
            return FixedWindow(window)
        kind = schedule, pruning.method, pruning.ratio
        if (policy := self._kept.pop(kind, None)) is None:
            policy = AutoWindow(vanilla=schedule.mode == "turns")
        self._kept[kind] = policy  # the last key is the most recently used
        if len(self._kept) > POLICIES:
            del self._kept[next(iter(self._kept))]
        return policy
