"""What is coordination in the time between two passes of the target, and what is the draft's work."""

from __future__ import annotations

import pytest

from pvlm.speculation.gaps import Gaps
from pvlm_protocols.messages import DraftWindow, Stopped, Verdict


def verdict(start: int, window: int, began_s: float, ended_s: float) -> Verdict:
    tokens = tuple(range(window + 1))
    pass_ms = (ended_s - began_s) * 1000
    return Verdict(
        session=1, epoch=0, start=start, tokens=tokens, accepted=window, window=window, pass_tokens=window + 1,
        pass_ms=pass_ms, ended_s=ended_s,
    )  # fmt: skip


def window(start: int, began_s: float, ended_s: float, *stopped: Stopped) -> DraftWindow:
    return DraftWindow(
        session=1, epoch=0, start=start, tokens=(1, 2), began_s=began_s, ended_s=ended_s, draft_ms=1.0, stopped=stopped
    )


def test_a_window_that_was_there_leaves_all_of_the_gap_to_coordination():
    gaps = Gaps()
    gaps.sent(window(0, 0.5, 0.7))
    gaps.sent(window(3, 0.8, 0.9))
    assert gaps.passed(verdict(0, 2, 1.0, 2.0)) is None
    gap = gaps.passed(verdict(3, 2, 2.003, 3.0))
    assert gap is not None
    assert (gap.ms, gap.coordination_ms) == (pytest.approx(3.0), pytest.approx(3.0))


def test_drafting_from_its_begin_to_its_end_is_not_coordination():
    """Though only 1 ms of it was spent on tokens: the draft looks into its mailbox in between."""
    gaps = Gaps()
    gaps.passed(verdict(0, 2, 1.0, 2.0))
    gaps.sent(window(3, 2.010, 2.050))
    gap = gaps.passed(verdict(3, 2, 2.062, 3.0))
    assert gap is not None
    assert gap.ms == pytest.approx(62.0)
    assert gap.coordination_ms == pytest.approx(22.0)


def test_what_was_drafted_during_the_pass_before_does_not_count_twice():
    gaps = Gaps()
    gaps.passed(verdict(0, 2, 1.0, 2.0))
    gaps.sent(window(3, 1.900, 2.030))
    gap = gaps.passed(verdict(3, 2, 2.031, 3.0))
    assert gap is not None
    assert gap.coordination_ms == pytest.approx(1.0)


def test_leaving_a_worthless_token_is_the_draft_s_work():
    gaps = Gaps()
    gaps.passed(verdict(0, 2, 1.0, 2.0))
    stopped = Stopped(epoch=0, start=3, tokens=1, draft_ms=500.0, ended_s=2.004)
    gaps.sent(window(3, 2.005, 2.045, stopped))
    gap = gaps.passed(verdict(3, 2, 2.047, 3.0))
    assert gap is not None
    assert gap.coordination_ms == pytest.approx(47.0 - 4.0 - 40.0)


def test_the_work_on_windows_that_come_later_is_nobody_s_wait():
    gaps = Gaps()
    gaps.passed(verdict(0, 2, 1.0, 2.0))
    gaps.sent(window(3, 1.5, 1.9))
    gaps.sent(window(6, 2.000, 2.005))
    gap = gaps.passed(verdict(3, 2, 2.002, 3.0))
    assert gap is not None
    assert gap.coordination_ms == pytest.approx(2.0)
