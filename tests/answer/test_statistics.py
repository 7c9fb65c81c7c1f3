"""The figures of one answer, from times, counts and the request."""

from __future__ import annotations

import time

import pytest

from pvlm import EngineConfig
from pvlm.answer.request import build_request
from pvlm.answer.statistics import Timeline, answer_stats
from pvlm.config import answer_options
from pvlm.coordination.events import Emit
from pvlm.coordination.statistics import Counts
from pvlm.telemetry.figures import figures
from tests.answer.test_request import DRAFT_FRAMES, TARGET_FRAMES, AnyPair
from tests.support.openings import asking

MOMENTS = ("asked", "queued", "admitted", "reading", "opened", "prefilled", "first_token", "finished")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each look at the clock is later by a second."""
    seconds = iter(range(100))
    monkeypatch.setattr(time, "perf_counter", lambda: float(next(seconds)))


@pytest.mark.usefixtures("clock")
def test_only_the_first_time_of_a_moment_counts() -> None:
    timeline = Timeline()
    timeline.reach("asked")
    timeline.reach("first_token")
    timeline.reach("first_token")
    assert timeline.between_s("asked", "first_token") == 1


def test_origins_say_who_wrote_each_token() -> None:
    timeline = Timeline()
    timeline.written(Emit((5, 6, 7), accepted=2, corrected=True), 3)
    timeline.written(Emit((8, 9), accepted=1), 2)
    timeline.written(Emit((1, 2, 3), accepted=3), 1)  # a stop string ended the answer after one token
    assert "".join(timeline.origins) == "ddcdtd"


@pytest.mark.usefixtures("clock")
def test_figures_are_those_of_times_counts_and_request() -> None:
    options = answer_options({"seed": 3, "temperature": 1.0, "method": "sd"})
    pair: object = AnyPair()
    turns = {"target": asking("?", TARGET_FRAMES), "draft": asking("?", DRAFT_FRAMES)}
    request = build_request(EngineConfig(), options, pair, turns)  # type: ignore[arg-type]
    timeline = Timeline()
    for moment in MOMENTS:
        timeline.reach(moment)  # type: ignore[arg-type]
    timeline.written(Emit((5, 6, 7), accepted=2, corrected=True), 3)
    counts = Counts(
        target_passes=2, target_pass_ms=[1.0, 3.0], target_pass_tokens=[1, 4], idle_ms=[2.0], coordination_ms=[0.5],
        drafted_tokens=8, draft_token_ms=[], accepted_tokens=2, rejected_tokens=1, rollbacks=1, windows=[4, 4],
        prompt_tokens=20, video_tokens=16, kept_video_tokens=12, prefill_ms={"draft": 7.0, "target": 9.0},
        draft_lost="gone",
    )  # fmt: skip
    stats = answer_stats(timeline, counts, request, (), options.seed)
    parts = (stats.startup_s, stats.waiting_s, stats.video_s, stats.prefill_s, stats.decode_s)
    assert parts == (1, 2, 1, 1, 2)
    assert stats.total_s == sum(parts)
    assert stats.time_to_first_token_s == 6
    assert (stats.new_tokens, stats.tokens_per_second, stats.origins) == (3, 1.5, "ddc")
    assert (stats.target_passes, stats.target_pass_ms, stats.target_passes_ms) == (2, 2.0, ((1, 1.0), (4, 3.0)))
    assert (stats.target_idle_ms, stats.coordination_ms, stats.draft_token_ms) == (2.0, (0.5,), None)
    assert (stats.acceptance_rate, stats.draft_efficiency, stats.mean_accepted_length) == (2 / 3, 0.25, 2.0)
    assert (stats.windows, stats.rollbacks, stats.draft_lost, stats.draft_prefill_ms) == ((4, 4), 1, "gone", 7.0)
    assert stats.target_prefill_ms == 9.0
    assert (stats.prompt_tokens, stats.video_tokens, stats.kept_video_tokens) == (20, 16, 12)
    assert (stats.target_backend, stats.draft_backend) == ("native", "torch")
    assert (stats.method, stats.prune, stats.seed, stats.coupling) == ("sd", "none", 3, "gumbel")
    assert stats.ignored_options == ("repetition_penalty=1.1",)
    assert ("warning", "not applied: the checkpoint's own repetition_penalty=1.1") in figures(stats)
    assert (stats.frame_indices, stats.source_frames, stats.source_fps) == ((), 0, None)
