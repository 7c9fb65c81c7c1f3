"""The figures of an answer in words: times explain themselves."""

from __future__ import annotations

import re

import pytest

from pvlm.telemetry.figures import figures
from tests.support.figures import stats


def test_times_say_what_they_consist_of() -> None:
    shown = dict(figures(stats()))
    assert shown["time"] == "5.000 s = start-up 3.900 + video 0.100 + prefill 0.600 + decoding 0.400"
    assert shown["first token after"] == "4.600 s = start-up 3.900 + video 0.100 + prefill 0.600"


@pytest.mark.parametrize("third", [1 / 3, 2 / 3, 0.0004])
def test_the_shown_parts_sum_to_the_shown_whole(third: float) -> None:
    parts = dict.fromkeys(["startup_s", "waiting_s", "video_s", "prefill_s", "decode_s"], third)
    for name, shown in figures(stats(**parts, total_s=5 * third, time_to_first_token_s=4 * third)):
        if name in ("time", "first token after"):
            whole, *rest = [float(number) for number in re.findall(r"\d+\.\d+", shown)]
            assert sum(rest) == pytest.approx(whole, abs=1e-9) if rest else whole == 0


def test_an_open_engine_shows_no_start_up() -> None:
    assert "start-up" not in dict(figures(stats(startup_s=0.0, total_s=1.1)))["time"]


def test_a_video_of_which_nothing_can_be_pruned() -> None:
    shown = [dict(figures(stats(video_tokens=0, kept_video_tokens=0, frame_indices=some))) for some in ((0, 1), ())]
    assert shown[0]["video tokens"] == "none that can be pruned"
    assert shown[1]["video tokens"].startswith("0")
