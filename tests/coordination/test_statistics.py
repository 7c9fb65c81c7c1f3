"""What the window policy is told where several sessions decode at once."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from pvlm.coordination.statistics import Measurements
from pvlm.speculation.policy import FixedWindow
from pvlm_protocols.messages import DraftWindow, TargetMode, Verdict


@dataclass
class Listener(FixedWindow):
    """A policy that notes the times of tokens, and how passes were shared."""

    paces: list[tuple[TargetMode, float]] = field(default_factory=list)
    shared: list[tuple[int, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__(4)

    def observe_pace(self, mode: TargetMode, tokens: int, ms: float) -> None:
        self.paces.append((mode, round(ms, 6)))

    def observe_sharing(self, n_tokens: int, own_tokens: int) -> None:
        self.shared.append((n_tokens, own_tokens))


def verdict(start: int, pass_tokens: int, *, window: int = 0, own_tokens: int = 1) -> Verdict:
    """Every 10 ms a pass of 3 ms."""
    return Verdict(
        session=1, epoch=0, start=start, tokens=(5,), accepted=0, window=window, pass_tokens=pass_tokens,
        own_tokens=own_tokens, pass_ms=3.0, ended_s=start / 100,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("sessions", "shared", "pass_tokens", "paces"),
    [
        (1, True, 1, [("alone", 10.0)]),
        (1, False, 1, [("alone", 10.0)]),
        (3, True, 3, [("alone", 10.0)]),
        (3, True, 1, []),  # the others were not ready
        (3, True, 9, []),  # it went along with windows of the others
        (3, False, 1, [("alone", 9.0)]),  # a pass of each, whatever the others did in between
    ],
)
def test_only_a_token_of_every_session_is_a_step_of_plain_decoding(
    sessions: int, shared: bool, pass_tokens: int, paces: list[tuple[TargetMode, float]]
) -> None:
    policy = Listener()
    measurements = Measurements(policy)
    measurements.decoding(sessions, shared=shared, prefilling=False)
    for start in (1, 2):
        measurements.judged(verdict(start, pass_tokens), "alone", waits=False)
    assert policy.paces == paces


def test_before_anything_is_known_a_pass_with_windows_of_others_will_do() -> None:
    policy = Listener()
    policy.baselined = False
    measurements = Measurements(policy)
    measurements.decoding(3, shared=True, prefilling=False)
    for start in (1, 2):
        measurements.judged(verdict(start, 9), "alone", waits=False)
    assert policy.paces == [("alone", 10.0)]


def test_the_time_of_a_window_that_began_as_a_branch_is_that_of_its_other_tokens() -> None:
    measurements = Measurements(Listener())
    for adopted, ms in ((0, 20.0), (3, 5.0), (4, 0.0)):
        window = DraftWindow(session=1, epoch=0, start=0, tokens=(5,) * 4, draft_ms=ms, adopted=adopted)
        measurements.drafted(window)
    assert measurements.counts.draft_token_ms == [5.0, 5.0]


def test_beside_a_prefill_the_pace_measures_nothing() -> None:
    policy = Listener()
    measurements = Measurements(policy)
    measurements.decoding(1, shared=True, prefilling=True)
    for start in (1, 2):
        measurements.judged(verdict(start, 1), "alone", waits=False)
    assert policy.paces == []


def test_a_target_that_held_logits_had_as_many_tokens_in_the_pass_as_its_window() -> None:
    policy = Listener()
    measurements = Measurements(policy)
    measurements.decoding(2, shared=True, prefilling=False)
    measurements.judged(verdict(1, 8, window=4, own_tokens=4), "together", waits=False)
    assert policy.shared == [(8, 4)]
