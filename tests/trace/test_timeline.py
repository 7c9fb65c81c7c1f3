"""The timeline agrees with the answer, whatever order things happened in, and with Chrome's trace format."""

from __future__ import annotations

import json
import random
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pvlm import Engine, EngineStateError, OptionError, PromptError
from pvlm.coordination.events import Event
from pvlm.coordination.statistics import Counts
from pvlm.speculation.policy import FixedWindow
from pvlm.telemetry.recorder import Recorded
from pvlm.trace import Trace
from pvlm.trace.timeline import SHORTEST_WAIT_MS, Timeline, timeline
from pvlm_protocols.backend import PromptError as BackendPromptError
from pvlm_protocols.backend import Session
from pvlm_protocols.messages import Open, Pruning, Schedule, Verdict, Window
from pvlm_protocols.turns import VideoFrames
from tests.coordination.harness import SCHEDULES, Harness, sampling
from tests.support.openings import asking
from tests.support.toy import ToyBackend, ToyProcessor
from tests.trace.conftest import FRAMES, TOY, traced

ORIGINS = {"accepted": "d", "corrected": "c", "alone": "t"}


def check(line: Timeline, tokens: list[int], counts: Counts) -> None:
    """What holds for every timeline of an answer with these tokens and counts."""
    assert {piece.row for piece in line.slices} <= set(line.rows)
    for row in line.rows:
        slices = [piece for piece in line.slices if piece.row == row]
        assert all(piece.begin_ms <= piece.end_ms for piece in slices)
        assert all(before.end_ms <= behind.begin_ms + 1e-6 for before, behind in pairwise(slices)), row
    settled = [cell.token for item in line.verdicts() for cell in item.cells]
    assert settled == tokens
    states = Counter(cell.state for item in line.verdicts() for cell in item.cells)
    fates = Counter(cell.state for piece in line.slices if piece.kind == "window" for cell in piece.cells)
    assert fates["accepted"] == states["accepted"] == counts.accepted_tokens
    assert fates["rejected"] == states["corrected"] == counts.rejected_tokens
    assert fates.total() >= counts.drafted_tokens  # some may come after the end
    assert sum(piece.kind == "pass" for piece in line.slices) == counts.target_passes
    assert sum(mark.kind == "rollback" for mark in line.marks) == counts.rollbacks
    dropped = sum(piece.detail.get("dropped", False) for piece in line.slices)
    assert dropped >= counts.dropped_windows
    for arrow in line.arrows:
        assert arrow.begin_ms <= arrow.end_ms
        sink = line.slices[arrow.sink]
        assert (sink.row, sink.begin_ms) == ("target" if arrow.kind == "window" else "draft", arrow.end_ms)


@pytest.mark.parametrize("schedule", SCHEDULES)
@settings(max_examples=40, deadline=None)
@given(
    order=st.integers(0, 10_000),
    noise=st.sampled_from([0.0, 0.5, 2.0]),
    gamma=st.integers(1, 7),
    wait=st.integers(0, 3),
)
def test_any_interleaving_gives_a_timeline_that_agrees_with_the_counts(
    schedule: str, order: int, noise: float, gamma: int, wait: int
) -> None:
    rng = random.Random(order)
    harness = Harness(
        schedule=schedule,
        draft=ToyBackend(noise=noise, seed=order),
        target=ToyBackend(seed=order),
        policy=FixedWindow(gamma, min(wait, gamma), rng.choice([0.0, 1e9])),
        window=Window(gamma=gamma),
    )
    trace = recorded(harness)
    lost_after = rng.choice([3, 30, 300, 3000])
    while not harness.coordinator.done:
        harness.make(rng.choice(harness.moves()))
        heard = [handled.event for handled in trace.recording().handled]
        verdicts = [event for event in heard if isinstance(event, Verdict) and event.tokens]
        if rng.random() < 0.02 and verdicts:
            harness.deliver(rng.choice(verdicts))  # late by now: it must change nothing
        if "draft" not in harness.crashed and len(heard) > lost_after:
            harness.lose_draft()
    check(timeline(trace.recording()), harness.emitted, harness.coordinator.counts)


def recorded(harness: Harness) -> Trace:
    """A trace of what a harness's coordinator takes in from now on (it has opened the session)."""
    trace = Trace()
    video = VideoFrames(pixels=np.zeros((4, 8, 8, 3), np.uint8), size=(8, 8))
    opening = Open(
        session=1, turns=asking("?", video), sampling=sampling(),
        pruning=Pruning(), schedule=Schedule(), window=Window(gamma=4),
    )  # fmt: skip
    with_draft = harness.coordinator.openings.draft is not None
    trace.began(Recorded(opening, with_draft, ((0, 1, 2, 3),), ToyProcessor(), {}))
    handle = harness.coordinator.handle

    def handle_and_record(event: Event) -> Any:
        commands = handle(event)
        trace.handled(event, commands)
        return commands

    harness.coordinator.handle = handle_and_record  # type: ignore[method-assign]
    return trace


# ---- of an engine -------------------------------------------------------------------------------------------------

WAYS: dict[str, dict[str, Any]] = {
    "parallel": {},
    "windows of 1": {"window": 1},
    "a seed": {"temperature": 1.0, "seed": 3},
    "sampling": {"temperature": 1.0},
    "sd": {"method": "sd"},
    "ar": {"method": "ar"},
    "a stop string": {"stop": "d"},
}


@pytest.mark.anyio
@pytest.mark.parametrize("way", WAYS)
async def test_the_trace_of_an_answer_is_chrome_s_format_and_agrees_with_it(way: str, tmp_path: Path) -> None:
    answer, trace = await traced(**WAYS[way])
    line = timeline(trace.recording())
    states = "".join(ORIGINS[cell.state] for item in line.verdicts() for cell in item.cells)
    assert states.startswith(answer.stats.origins)
    assert line.rows == (("target",) if way == "ar" else ("draft", "target"))
    written = trace.write(tmp_path)
    assert sorted(path.name for path in written) == ["frames.png", "timeline.html", "timeline.json"]
    content = json.loads((tmp_path / "timeline.json").read_bytes())
    check_chrome(content["traceEvents"])
    tokens = [token for event in verdict_events(content) for token in event["args"]["tokens"]]
    assert tuple(tokens[: len(answer.tokens)]) == answer.tokens
    assert len(tokens) == len(answer.tokens) or way == "a stop string"
    assert content["otherData"]["stats"]["origins"] == answer.stats.origins


def verdict_events(content: dict[str, Any]) -> list[dict[str, Any]]:
    """The events that settle tokens of the answer, by position."""
    events = [event for event in content["traceEvents"] if event.get("cat") in ("pass", "verdict")]
    return sorted((event for event in events if event["args"]["tokens"]), key=lambda event: event["args"]["start"])


def check_chrome(events: list[dict[str, Any]]) -> None:
    """Google's "Trace Event Format": the phases X, i, M, s and f."""
    for event in events:
        assert isinstance(event["name"], str)
        assert {"pid", "tid", "ph"} <= set(event)
        match event["ph"]:
            case "X":
                assert event["dur"] >= 0
                assert isinstance(event["ts"], float)
                assert event["cat"] in ("open", "prefill", "window", "stopped", "pass", "wait")
            case "i":
                assert event["s"] == "t"
                assert isinstance(event["ts"], float)
            case "s" | "f":
                inside = [x for x in events if x["ph"] == "X" and x["tid"] == event["tid"] and around(x, event["ts"])]
                assert inside, "an end of a flow that lies in no slice"
            case "M":
                assert event["name"] in ("process_name", "thread_name", "thread_sort_index")
            case other:
                raise AssertionError(other)
    flows = Counter((event["id"], event["ph"]) for event in events if event["ph"] in "sf")
    assert set(flows.values()) <= {1}
    assert {number for number, phase in flows if phase == "s"} == {number for number, phase in flows if phase == "f"}
    by_thread: dict[int, list[tuple[float, float]]] = {}
    for event in events:
        if event["ph"] == "X":
            by_thread.setdefault(event["tid"], []).append((event["ts"], event["ts"] + event["dur"]))
    for slices in by_thread.values():
        assert all(before[1] <= behind[0] + 1e-3 for before, behind in pairwise(sorted(slices)))


def around(event: dict[str, Any], at: float) -> bool:
    return event["ts"] <= at <= event["ts"] + event["dur"]


@pytest.mark.anyio
async def test_a_trace_changes_nothing() -> None:
    answer, _ = await traced(temperature=1.0, seed=5)
    async with Engine.create(**TOY) as engine:
        untraced = await engine.answer(FRAMES, "What?", temperature=1.0, seed=5, max_tokens=40, window=4)
    assert answer.tokens == untraced.tokens


@pytest.mark.anyio
async def test_what_a_rollback_stops_is_shown() -> None:
    """A slow draft is always in the middle of a long window when a rejection comes."""
    _, trace = await traced(target="0@1", draft="2.0@2", window=12)
    line = timeline(trace.recording())
    stopped = [piece for piece in line.slices if piece.kind == "stopped"]
    assert stopped
    assert all(piece.end_ms - piece.begin_ms >= 2 * piece.detail["tokens"] for piece in stopped)
    rollbacks = [mark.at_ms for mark in line.marks if mark.kind == "rollback"]
    assert all(any(at <= piece.end_ms for at in rollbacks) for piece in stopped)


@pytest.mark.anyio
async def test_waiting_is_what_is_left_between_an_actor_s_work() -> None:
    _, trace = await traced(target="0@5", draft="0@1")
    line = timeline(trace.recording())
    for row in line.rows:
        slices = [piece for piece in line.slices if piece.row == row]
        assert any(piece.kind == "wait" for piece in slices)
        assert all(behind.begin_ms - before.end_ms < SHORTEST_WAIT_MS for before, behind in pairwise(slices))


# ---- misuse -------------------------------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_a_trace_is_of_one_answer(tmp_path: Path) -> None:
    _, trace = await traced()
    async with Engine.create(**TOY) as engine:
        with pytest.raises(EngineStateError, match=r"holds an answer already: make another Trace\(\)"):
            await engine.answer(FRAMES, "What?", trace=trace)
    with pytest.raises(EngineStateError, match="this trace is empty"):
        Trace().write(tmp_path / "nothing")
    assert not (tmp_path / "nothing").exists()


@pytest.mark.anyio
async def test_an_answer_that_was_left_or_failed_has_a_trace_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> Session:
        raise BackendPromptError("it is too long")

    left, failed = Trace(), Trace()
    slow = {**TOY, "target": "0@3"}  # so that it is left before it is over
    async with Engine.create(**slow) as engine:
        async with engine.stream(FRAMES, "What?", trace=left, max_tokens=400, ignore_eos=True) as chunks:
            await anext(chunks)
        monkeypatch.setattr(ToyBackend, "open", refuse)
        with pytest.raises(PromptError, match="too long"):
            await engine.answer(FRAMES, "What?", trace=failed)
    for trace in (left, failed):
        trace.write(tmp_path)
        assert json.loads((tmp_path / "timeline.json").read_bytes())["otherData"]["stats"] is None
    assert "failed" in {mark.kind for mark in timeline(failed.recording()).marks}
    assert timeline(left.recording()).verdicts()


@pytest.mark.anyio
async def test_a_directory_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    _, trace = await traced()
    (tmp_path / "file").write_text("")
    with pytest.raises(OptionError, match="cannot write a trace to the directory '.*file': File exists"):
        trace.write(tmp_path / "file")
    (tmp_path / "there" / "frames.png").mkdir(parents=True)
    with pytest.raises(OptionError, match=r"cannot write the trace '.*frames\.png': Is a directory"):
        trace.write(tmp_path / "there")
    assert len(trace.write(tmp_path / "new" / "place")) == 3
