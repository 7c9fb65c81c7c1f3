"""Which answers of an engine share what their window policy has learned."""

from __future__ import annotations

from pvlm.runtime.policies import POLICIES, WindowPolicies
from pvlm_protocols.messages import Pruning, Schedule

TOGETHER = Schedule()
TURNS = Schedule(mode="turns")


def test_answers_of_the_same_schedule_and_pruning_share_a_policy() -> None:
    policies = WindowPolicies()
    half = Pruning(method="uv", ratio=0.5)
    policy = policies.policy(TOGETHER, half, "auto")
    assert policies.policy(TOGETHER, Pruning(method="uv", ratio=0.5, seed=7), "auto") is policy
    assert policies.policy(TURNS, half, "auto") is not policy
    assert policies.policy(TOGETHER, Pruning(method="uniform", ratio=0.5), "auto") is not policy
    assert policies.policy(TOGETHER, Pruning(method="uv", ratio=0.9), "auto") is not policy
    assert policies.policy(TOGETHER, half, 5) is not policies.policy(TOGETHER, half, 5)


def test_the_least_recently_used_policy_is_dropped() -> None:
    """Callers may choose any ratio, and an engine may run for weeks."""
    policies = WindowPolicies()

    def policy(ratio: float) -> object:
        return policies.policy(TOGETHER, Pruning(method="uv", ratio=ratio), "auto")

    first, second = policy(0.0), policy(0.1)
    for index in range(POLICIES - 1):
        assert policy(0.0) is first
        policy(0.2 + index / 1000)
    assert policy(0.0) is first
    assert policy(0.1) is not second
