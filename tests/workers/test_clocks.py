"""What is known here of another host's clock, whatever the network and the two clocks do."""

from __future__ import annotations

from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pvlm.workers.clocks import DRIFT, HostClock
from pvlm_protocols.messages import DraftWindow, Loading, Opened, Pong, PrefillDone, Stopped, Verdict


class Trip(NamedTuple):
    """Seconds: before it, to the worker and back."""

    pause_s: float
    there_s: float
    back_s: float


seconds = st.floats(0, 5)
trips = st.builds(Trip, st.floats(0, 1000), seconds, seconds)


@given(
    st.lists(trips, min_size=1, max_size=20),
    st.floats(-1e6, 1e6),
    st.floats(-0.5 * DRIFT, 0.5 * DRIFT),
    st.sets(st.integers(0, 19)),
)
def test_the_offset_is_within_the_error(journeys: list[Trip], ahead_s: float, drift: float, lost: set[int]) -> None:
    """Lopsided round trips, lost answers, and clocks that go apart by as much as is allowed for."""
    now = 0.0
    clock = HostClock(lambda: now)
    for nonce, trip in enumerate(journeys):
        now += trip.pause_s
        clock.asked(nonce)
        now += trip.there_s
        pong = Pong(nonce=nonce, role="draft", progress=0, at_s=ahead_s + now * (1 + drift))
        now += trip.back_s
        if nonce not in lost:
            clock.answered(pong)
            assert abs(ahead_s + now * drift - clock.offset_s) <= clock.error_s + 1e-6


def test_the_shortest_round_trip_counts_until_it_is_old() -> None:
    now = 0.0
    clock = HostClock(lambda: now)

    def trip(there_s: float, back_s: float, ahead_s: float) -> None:
        nonlocal now
        clock.asked(1)
        now += there_s
        pong = Pong(nonce=1, role="draft", progress=0, at_s=now + ahead_s)
        now += back_s
        clock.answered(pong)

    trip(0.001, 0.001, 500.0)
    trip(2.0, 0.0, 500.0)  # it was busy: half a round trip says little
    assert clock.offset_s == pytest.approx(500.0)
    assert clock.error_s == pytest.approx(0.001, rel=0.3)
    now += 1000
    trip(0.01, 0.01, 500.05)  # worse than the first was, better than it is by now
    assert clock.offset_s == pytest.approx(500.05)


def test_an_answer_to_nothing_teaches_nothing() -> None:
    clock = HostClock(lambda: 0.0)
    clock.answered(Pong(nonce=1, role="draft", progress=0, at_s=1e9))
    assert clock.offset_s == 0


def test_the_times_of_messages_are_put_on_this_clock() -> None:
    """All of them, and nothing else."""
    now = 100.0
    clock = HostClock(lambda: now)
    clock.asked(1)
    clock.answered(Pong(nonce=1, role="draft", progress=0, at_s=1100.0))
    now = 200.0
    assert clock.here(Opened(session=1, role="draft", prompt_tokens=2, video_tokens=1, open_ms=3, ended_s=1101.0)) == (
        Opened(session=1, role="draft", prompt_tokens=2, video_tokens=1, open_ms=3, ended_s=101.0)
    )
    assert clock.here(PrefillDone(session=1, role="draft", prompt_tokens=2, prefill_ms=3, ended_s=1102.0)) == (
        PrefillDone(session=1, role="draft", prompt_tokens=2, prefill_ms=3, ended_s=102.0)
    )
    assert clock.here(Verdict(session=1, epoch=0, start=0, tokens=(1,), accepted=0, pass_ms=4, ended_s=1103.0)) == (
        Verdict(session=1, epoch=0, start=0, tokens=(1,), accepted=0, pass_ms=4, ended_s=103.0)
    )
    there = DraftWindow(
        session=1, epoch=0, start=0, tokens=(1,), draft_ms=5, began_s=1104.0, ended_s=1105.0,
        stopped=(Stopped(epoch=0, start=0, tokens=1, draft_ms=6, ended_s=1106.0),),
    )  # fmt: skip
    assert clock.here(there) == DraftWindow(
        session=1, epoch=0, start=0, tokens=(1,), draft_ms=5, began_s=104.0, ended_s=105.0,
        stopped=(Stopped(epoch=0, start=0, tokens=1, draft_ms=6, ended_s=106.0),),
    )  # fmt: skip
    assert clock.here(Loading(role="draft", fraction=0.5)) == Loading(role="draft", fraction=0.5)
    now = 102.5
    told = clock.here(Verdict(session=1, epoch=0, start=0, tokens=(1,), accepted=0, ended_s=1103.0))
    assert told == Verdict(
        session=1, epoch=0, start=0, tokens=(1,), accepted=0, ended_s=102.5
    )  # when its report arrived
