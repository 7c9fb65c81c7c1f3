"""The window policies that the answers of one engine share."""

from __future__ import annotations

from pvlm.config import OutcomesSetting, WindowSetting
from pvlm.speculation.estimates import PRIOR
from pvlm.speculation.outcomes import HIT_PRIOR, cumulative, plan_outcomes
from pvlm.speculation.policy import FixedWindow, WindowPolicy
from pvlm.speculation.windows import AutoWindow
from pvlm_protocols.messages import Coupling, Pruning, Schedule

POLICIES = 64
"""The largest number of policies that are kept."""


class WindowPolicies:
    """Keeps each policy that learns, for the next answer of the same kind. Drops the least recently used."""

    def __init__(self) -> None:
        self._kept: dict[tuple[Schedule, str, float, str, OutcomesSetting], WindowPolicy] = {}

    def policy(
        self,
        schedule: Schedule,
        pruning: Pruning,
        window: WindowSetting,
        outcomes: OutcomesSetting = 0,
        coupling: Coupling = "greedy",
    ) -> WindowPolicy:
        """The policy of one answer. Answers share a policy if all but ``window`` is the same."""
        if schedule.mode != "together":
            outcomes = 0
        if window != "auto":
            return FixedWindow(window, outcomes=fixed_outcomes(window, outcomes))
        kind = schedule, pruning.method, pruning.ratio, coupling if outcomes else "", outcomes
        if (policy := self._kept.pop(kind, None)) is None:
            count = None if outcomes == "auto" else outcomes
            policy = AutoWindow(vanilla=schedule.mode == "turns", outcomes=count)
        self._kept[kind] = policy  # the last key is the most recently used
        if len(self._kept) > POLICIES:
            del self._kept[next(iter(self._kept))]
        return policy


def fixed_outcomes(window: int, outcomes: OutcomesSetting) -> tuple[int, ...]:
    """The branches for windows of a fixed length, by offset; none for "auto", because nothing is learned."""
    if outcomes == "auto" or not outcomes:
        return ()
    return plan_outcomes(outcomes, PRIOR, cumulative(HIT_PRIOR), window)
