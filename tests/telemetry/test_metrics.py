"""What an engine counts and times, as Prometheus would read it, and what it logs, on toys in this process."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, get_args

import anyio
import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from structlog.testing import capture_logs

from pvlm import ConfigError, Engine, EngineBusy, OptionError, TargetLost, VideoError
from pvlm.telemetry.metrics import METRICS
from pvlm.telemetry.prometheus import PrometheusMetrics
from pvlm.telemetry.reporter import Fault
from tests.engine.conftest import FRAMES, TOY
from tests.support.totals import Totals

pytestmark = pytest.mark.anyio
ENDLESS: dict[str, Any] = {"max_tokens": 100_000, "ignore_eos": True}


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


def exposed(registry: CollectorRegistry) -> dict[str, float]:
    """What Prometheus reads: values by name, with the labels' values after it (not of buckets)."""
    families = text_string_to_metric_families(generate_latest(registry).decode())
    return {
        " ".join([sample.name, *sample.labels.values()]).strip(): sample.value
        for family in families
        for sample in family.samples
        if "le" not in sample.labels
    }


# ---- answers ------------------------------------------------------------------------------------------------------


async def test_what_is_exposed_are_the_figures_of_the_answers(registry: CollectorRegistry) -> None:
    async with Engine.create(TOY, metrics=PrometheusMetrics(registry)) as engine:
        methods = ["parallel", "sd", "ar", "parallel"]
        answers = [await engine.answer(FRAMES, "?", max_tokens=80, method=method) for method in methods]
    found = exposed(registry)
    stats = [answer.stats for answer in answers]
    assert found["pvlm:spec_decode_num_draft_tokens_total"] == sum(one.drafted_tokens for one in stats) > 0
    assert found["pvlm:spec_decode_num_accepted_tokens_total"] == sum(one.accepted_tokens for one in stats) > 0
    assert found["pvlm:spec_decode_num_rejected_tokens_total"] == sum(one.rejected_tokens for one in stats) > 0
    assert found["pvlm:generation_tokens_total"] == sum(one.new_tokens for one in stats)
    by_position = {name: value for name, value in found.items() if "per_pos_total" in name}
    assert sum(by_position.values()) == found["pvlm:spec_decode_num_accepted_tokens_total"]
    assert by_position["pvlm:spec_decode_num_accepted_tokens_per_pos_total 0"] == max(by_position.values())
    assert max(by_position.values()) <= found["pvlm:spec_decode_num_drafts_total"] <= sum(len(s.windows) for s in stats)
    assert {name: value for name, value in found.items() if name.startswith("pvlm:requests_total")} == {
        f"pvlm:requests_total {reason}": [answer.finish_reason for answer in answers].count(reason)
        for reason in {answer.finish_reason for answer in answers}
    }
    assert found["pvlm:e2e_request_latency_seconds_count"] == len(answers)
    assert found["pvlm:e2e_request_latency_seconds_sum"] == pytest.approx(sum(one.total_s for one in stats))
    assert found["pvlm:time_to_first_token_seconds_count"] == len(answers)
    spent = sum(one.time_to_first_token_s for one in stats)
    assert found["pvlm:time_to_first_token_seconds_sum"] == pytest.approx(spent, abs=0.01)


async def test_the_latencies_between_tokens_add_up_to_the_time_of_decoding(registry: CollectorRegistry) -> None:
    async with Engine.create(TOY, target="0@2", metrics=PrometheusMetrics(registry)) as engine:
        answer = await engine.answer(FRAMES, "?", max_tokens=50, method="ar", ignore_eos=True)
    found = exposed(registry)
    assert found["pvlm:inter_token_latency_seconds_count"] == 49  # the first has another time
    spent = answer.stats.total_s - answer.stats.time_to_first_token_s
    assert found["pvlm:inter_token_latency_seconds_sum"] == pytest.approx(spent, abs=0.01)
    assert found["pvlm:inter_token_latency_seconds_sum"] > 49 * 0.002


async def test_who_is_answered_and_who_waits(registry: CollectorRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pvlm.telemetry.reporter.TELL_EVERY_S", 0.0)
    async with Engine.create(TOY, max_sessions=1, metrics=PrometheusMetrics(registry)) as engine:
        async with engine.stream(FRAMES, "?", **ENDLESS) as chunks:
            await chunks.__anext__()
            waiting = asyncio.ensure_future(engine.answer(FRAMES, "?", max_tokens=9))
            seen = "pvlm:num_requests_waiting", "pvlm:inter_token_latency_seconds_count"
            with anyio.fail_after(10):
                while not all(exposed(registry)[name] for name in seen):
                    await asyncio.sleep(0.001)
            found = exposed(registry)
            assert (found["pvlm:num_requests_running"], found["pvlm:num_requests_waiting"]) == (1, 1)
            assert found["pvlm:inter_token_latency_seconds_count"] > 0  # not only when an answer is over
            assert [found[f"pvlm:workers_running {role}"] for role in ("target", "draft")] == [1, 1]
        await waiting
        found = exposed(registry)
        assert (found["pvlm:num_requests_running"], found["pvlm:num_requests_waiting"]) == (0, 0)
    assert [exposed(registry)[f"pvlm:workers_running {role}"] for role in ("target", "draft")] == [0, 0]


# ---- how answers end ----------------------------------------------------------------------------------------------


async def test_every_answer_ends_in_the_log_and_is_counted(registry: CollectorRegistry, tmp_path: Path) -> None:
    async with Engine.create(TOY, max_sessions=1, max_waiting=0, metrics=PrometheusMetrics(registry)) as engine:
        with capture_logs() as logs:
            await engine.answer(FRAMES, "?", max_tokens=3, ignore_eos=True)
            async with engine.stream(FRAMES, "?", **ENDLESS) as chunks:
                await chunks.__anext__()
                with pytest.raises(EngineBusy):
                    await engine.answer(FRAMES, "?")
            with anyio.move_on_after(0.05):
                await engine.answer(FRAMES, "?", **ENDLESS)
            task = asyncio.ensure_future(engine.answer(FRAMES, "?", **ENDLESS))
            await asyncio.sleep(0.05)
            task.cancel()
            await asyncio.wait([task])
            with pytest.raises(VideoError):
                await engine.answer(str(tmp_path / "none.mp4"), "?")
            (tmp_path / "broken.mp4").write_bytes(b"no video")
            with pytest.raises(VideoError):
                await engine.answer(tmp_path / "broken.mp4", "?")
            with pytest.raises(OptionError):
                await engine.answer(FRAMES, "?", prune="nothing like it")
            with pytest.raises(ZeroDivisionError):
                async with engine.stream(FRAMES, "?", **ENDLESS) as chunks:
                    await chunks.__anext__()
                    raise ZeroDivisionError  # the caller's own
    told = [(line["event"], line["log_level"], line.get("session")) for line in logs]
    assert told == [
        ("answered", "info", 1),
        ("engine_busy", "warning", None),
        ("answer_left", "info", 2),
        ("answer_cancelled", "info", 3),
        ("answer_cancelled", "info", 4),
        ("video_refused", "warning", None),
        ("video_refused", "warning", None),
        ("answer_failed", "warning", None),
        ("answer_left", "info", 5),
    ]
    assert "deadline exceeded" in logs[3]["reason"]  # as anyio has it
    assert logs[5]["reason"] == "there is no such file"
    assert logs[6]["path"] == str(tmp_path / "broken.mp4")
    found = exposed(registry)
    assert {name.split()[1]: value for name, value in found.items() if "requests_total" in name} == {
        "length": 1,
        "left": 2,
        "cancelled": 2,
        "VideoError": 2,
        "EngineBusy": 1,
        "OptionError": 1,
    }
    assert {name.split()[1]: value for name, value in found.items() if "faults_total" in name} == {
        "video_refused": 2,
        "engine_busy": 1,
        "answer_failed": 1,
    }
    assert found["pvlm:num_requests_running"] == found["pvlm:num_requests_waiting"] == 0


# ---- workers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", ["target", "draft"])
async def test_the_story_of_a_worker_that_is_lost(bombs: set[str], registry: CollectorRegistry, role: str) -> None:
    """Who, why, which answer, and that it went on."""
    async with Engine.create(TOY, target="0@1", metrics=PrometheusMetrics(registry)) as engine:
        await engine.answer(FRAMES, "?", max_tokens=3)
        with capture_logs() as logs:
            async with engine.stream(FRAMES, "?", max_tokens=400, ignore_eos=True) as chunks:
                await chunks.__anext__()
                bombs.add(role)
                async for _ in chunks:
                    pass
    fields = "event", "role", "session", "reason"
    told = [{name: line.get(name) for name in fields} for line in logs if line["log_level"] != "debug"]
    reason = f"RuntimeError: the {role} went off"
    assert told[:-1] == [
        {"event": "worker_lost", "role": role, "session": None, "reason": reason},
        {"event": "session_interrupted", "role": role, "session": 2, "reason": reason},
        {"event": "worker_ready", "role": role, "session": None, "reason": ""},
        {"event": "worker_restarted", "role": role, "session": None, "reason": None},
        {"event": "session_resumed", "role": role, "session": 2, "reason": None},
    ]
    assert told[-1] == {"event": "answered", "role": None, "session": 2, "reason": None}
    found = exposed(registry)
    assert found[f"pvlm:worker_restarts_total {role}"] == 1
    assert found[f"pvlm:faults_total worker_lost {role}"] == found[f"pvlm:faults_total session_interrupted {role}"] == 1


async def test_the_story_of_a_worker_that_is_given_up(bombs: set[str], registry: CollectorRegistry) -> None:
    async with Engine.create(TOY, target="0@1", target_restarts=0, metrics=PrometheusMetrics(registry)) as engine:
        with capture_logs() as logs:
            async with engine.stream(FRAMES, "?", **ENDLESS) as chunks:
                await chunks.__anext__()
                bombs.add("target")
                with pytest.raises(TargetLost):
                    async for _ in chunks:
                        pass
                assert exposed(registry)["pvlm:workers_running target"] == 0
            with pytest.raises(TargetLost):
                await engine.answer(FRAMES, "?")
    told = [(line["event"], line["log_level"], line.get("session")) for line in logs]
    assert told == [
        ("worker_lost", "warning", None),
        ("session_interrupted", "warning", 1),
        ("worker_given_up", "error", None),
        ("answer_failed", "warning", 1),
        ("answer_failed", "warning", None),
    ]


async def test_a_session_that_fails_at_an_actor_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise ValueError("no such prompt")

    async with Engine.create(TOY) as engine:
        monkeypatch.setattr("tests.support.toy.ToySession.prefill", broken)
        with capture_logs() as logs, pytest.raises(Exception, match="no such prompt"):
            await engine.answer(FRAMES, "?")
    failed = [line for line in logs if line["event"] == "session_failed"]
    assert {line["role"] for line in failed} >= {"target"}
    assert all(line["session"] == 1 and line["reason"] == "ValueError: no such prompt" for line in failed)
    assert (logs[-1]["event"], logs[-1]["session"], logs[-1]["error"]) == ("answer_failed", 1, "ModelError")


# ---- the interface ------------------------------------------------------------------------------------------------


async def test_engines_count_together_or_each_for_itself(registry: CollectorRegistry) -> None:
    shared, alone = PrometheusMetrics(registry), CollectorRegistry()
    with pytest.raises(ConfigError, match="give the same PrometheusMetrics to every engine"):
        PrometheusMetrics(registry)
    async with (
        Engine.create(TOY, metrics=shared) as first,
        Engine.create(TOY, metrics=shared) as second,
        Engine.create(TOY, metrics=PrometheusMetrics(alone)) as third,
    ):
        for engine in (first, second, third):
            await engine.answer(FRAMES, "?", max_tokens=5, ignore_eos=True)
        assert exposed(registry)["pvlm:workers_running target"] == 2
        assert exposed(registry)["pvlm:requests_total length"] == 2
        assert exposed(alone)["pvlm:requests_total length"] == 1


async def test_any_object_with_two_methods_will_do() -> None:
    totals = Totals()
    answer = await Engine.create(TOY, metrics=totals).answer(FRAMES, "?", max_tokens=20, ignore_eos=True)
    assert totals.found["pvlm:generation_tokens"] == 20
    assert totals.found["pvlm:spec_decode_num_draft_tokens"] == answer.stats.drafted_tokens > 0
    assert totals.found["pvlm:num_requests_running"] == totals.found["pvlm:workers_running target"] == 0


def test_every_metric_and_every_fault_is_in_the_docs() -> None:
    page = (Path(__file__).parents[2] / "docs" / "reference" / "operations.md").read_text()
    for name in [*(metric.name for metric in METRICS), *get_args(Fault)]:
        assert f"`{name}`" in page, name
