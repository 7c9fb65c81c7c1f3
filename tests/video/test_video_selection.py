from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pvlm.errors import OptionError
from pvlm.video.selection import at_default_rate, at_rate, consecutive, frame_range, uniform

ranges = st.tuples(st.integers(0, 10_000), st.integers(0, 10_000)).map(lambda pair: (min(pair), max(pair)))
gaps = st.lists(st.floats(0.001, 2.0), min_size=1, max_size=60)


@given(ranges, st.integers(1, 300))
def test_uniform_takes_the_ends_and_never_a_frame_twice(limits: tuple[int, int], count: int) -> None:
    first, last = limits
    chosen = uniform(first, last, count)
    assert len(chosen) == min(count, last - first + 1)
    assert all(a < b for a, b in itertools.pairwise(chosen))
    assert chosen[0] == first
    if count > 1:
        assert chosen[-1] == last


@given(ranges, st.integers(2, 300))
def test_uniform_is_spread_evenly(limits: tuple[int, int], count: int) -> None:
    steps = np.diff(uniform(*limits, count))
    assert len(steps) == 0 or steps.max() - steps.min() <= 2


def test_uniform_is_the_documented_formula() -> None:
    assert uniform(0, 99, 5) == (0, 25, 50, 74, 99)
    assert uniform(10, 20, 3) == (10, 15, 20)
    assert uniform(0, 5, 3) == (0, 2, 5)  # 2.5: a half goes to the even number
    assert uniform(3, 99, 1) == (3,)


@given(ranges, st.integers(1, 300))
def test_consecutive_takes_all_of_a_short_range_and_spreads_over_a_long_one(
    limits: tuple[int, int], count: int
) -> None:
    first, last = limits
    whole = tuple(range(first, last + 1))
    assert consecutive(first, last, count) == (whole if len(whole) <= count else uniform(first, last, count))


@given(gaps, st.floats(0.01, 100.0), st.data())
def test_rate_takes_the_nearest_frame_to_each_instant(steps: list[float], fps: float, data: st.DataObject) -> None:
    times = [0.0, *itertools.accumulate(steps)]
    first = data.draw(st.integers(0, len(times) - 1))
    last = data.draw(st.integers(first, len(times) - 1))
    chosen = at_rate(times, first, last, fps)
    assert chosen[0] == first
    assert chosen[-1] <= last
    assert all(a < b for a, b in itertools.pairwise(chosen))
    instants = np.arange(times[first], times[last] + 1e-6, 1 / fps)
    part = np.array(times[first : last + 1])
    nearest = {first + int(np.argmin(np.abs(part - instant))) for instant in instants}
    distance = {index: np.abs(instants - times[index]).min() for index in set(chosen) ^ nearest}
    assert all(value > 0.4 * min(steps) or value < 1e-3 for value in distance.values())  # ties, and the last instant
    assert len(set(chosen) ^ nearest) <= max(2, len(nearest) // 2)


def test_rate_examples() -> None:
    times = [index / 24 for index in range(240)]
    assert at_rate(times, 0, 239, 1) == tuple(range(0, 240, 24))
    assert at_rate(times, 0, 239, 24) == tuple(range(240))
    assert at_rate(times, 0, 239, 1000) == tuple(range(240))
    assert at_rate(times, 24, 95, 2) == (24, 36, 48, 60, 72, 84)
    assert at_rate([0.0, 0.1, 5.0], 0, 2, 1) == (0, 1, 2)
    assert at_rate([0.0], 0, 0, 5) == (0,)
    assert at_rate([0.0, 1.0], 0, 1, 0.1) == (0,)


def test_absurd_rate_is_refused_with_its_number() -> None:
    with pytest.raises(OptionError, match=r"fps=1e\+09 over 3600 s"):
        at_rate([0.0, 3600.0], 0, 1, 1e9)


@given(gaps, st.floats(0, 1), st.floats(0, 1))
def test_a_range_of_seconds_is_never_empty(steps: list[float], a: float, b: float) -> None:
    times = [0.0, *itertools.accumulate(steps)]
    duration = times[-1] + 0.5
    start, end = sorted((a * duration * 0.99, b * duration))
    if end <= start:
        return
    first, last = frame_range(times, duration, start, end)
    assert 0 <= first <= last < len(times)
    assert times[first] <= start + 0.001
    assert first + 1 == len(times) or times[first + 1] > start
    assert last == first or times[last] < end


def test_range_examples() -> None:
    times = [index / 25 for index in range(100)]
    assert frame_range(times, 4.0, None, None) == (0, 99)
    assert frame_range(times, 4.0, 1.0, 2.0) == (25, 49)
    assert frame_range(times, 4.0, 1.01, 1.02) == (25, 25)
    assert frame_range(times, 4.0, None, 4.04) == (0, 99)
    rounded = [float(np.float32(time)) for time in times]
    assert all(frame_range(rounded, 4.0, time, None) == (index, 99) for index, time in enumerate(times))


@pytest.mark.parametrize(("start", "end", "says"), [(4.0, None, "start=4 s"), (9, 10, "start=9 s"), (0, 5, "end=5 s")])
def test_times_beyond_the_video_are_refused(start: float, end: float | None, says: str) -> None:
    with pytest.raises(OptionError, match=f"{says} is .*4 s"):
        frame_range([index / 25 for index in range(100)], 4.0, start, end)


@pytest.mark.parametrize("arguments", [(-1, 5, 3), (5, 4, 3), (0, 5, 0)])
def test_a_range_that_cannot_be(arguments: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError):
        uniform(*arguments)


@given(st.integers(1, 400), st.sampled_from([1.0, 10.0, 23.976, 24.0, 30.0]), st.integers(1, 6), st.integers(1, 60))
def test_a_default_rate_keeps_within_its_bounds(frames: int, source_fps: float, fewest: int, most: int) -> None:
    most = max(fewest, most)
    times = [index / source_fps for index in range(frames)]
    chosen = at_default_rate(times, 0, frames - 1, 2.0, fewest, most, 2)
    assert all(a < b for a, b in itertools.pairwise(chosen))
    assert len(chosen) <= most
    assert len(chosen) % 2 == 0 or len(chosen) == 1
    assert len(chosen) >= min(fewest, frames) - 1
    exact = at_rate(times, 0, frames - 1, 2.0)
    if fewest <= len(exact) <= most and len(exact) > 1:
        assert chosen == exact[: len(exact) // 2 * 2]
    elif len(exact) > most > 1:
        assert chosen == uniform(0, frames - 1, most // 2 * 2)


def test_a_default_rate_takes_the_frames_of_that_rate() -> None:
    times = [index / 24 for index in range(240)]
    assert at_default_rate(times, 0, 239, 2.0, 4, 768, 2) == tuple(range(0, 240, 12))
    assert at_default_rate(times, 0, 239, 2.0, 4, 10, 2) == uniform(0, 239, 10)
    assert at_default_rate(times, 0, 11, 2.0, 4, 768, 2) == uniform(0, 11, 4)
