"""Faults of worker processes in the log and in the metrics: what an operator reads of them."""

from __future__ import annotations

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from structlog.testing import capture_logs

from pvlm import Engine
from pvlm.telemetry.prometheus import PrometheusMetrics
from pvlm.transports.framing import framed
from pvlm.transports.wire import Frames
from tests.support.toy import ToyBackend
from tests.workers.conftest import FRAMES, LONG, TOY, until, workers

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("_nothing_left", "_toys")]


async def test_a_killed_worker_is_in_the_log_and_in_the_metrics() -> None:
    registry = CollectorRegistry()
    async with Engine.create(TOY, metrics=PrometheusMetrics(registry)) as engine:
        with capture_logs() as logs:
            async with engine.stream(FRAMES, "?", **LONG) as chunks:
                await chunks.__anext__()
                killed = workers()["target"]
                killed.kill()
                async for _ in chunks:
                    pass
        text = generate_latest(registry).decode()
        assert list(chunks.answer.tokens) == ToyBackend().greedy(400, end_tokens=())
        pid = engine.processes["target"]
    told = [line for line in logs if line["log_level"] != "debug"]
    names = ["worker_lost", "session_interrupted", "worker_restarted", "session_resumed", "answered"]
    assert [line["event"] for line in told] == names
    assert [line.get("session") for line in told] == [None, 1, None, 1, 1]
    assert [line.get("role") for line in told] == ["target"] * 4 + [None]
    assert (told[0]["pid"], told[0]["reason"]) == (killed.pid, "killed by signal 9")
    assert told[2]["pid"] == pid != killed.pid
    for line in (
        'pvlm:worker_restarts_total{role="target"} 1.0',
        'pvlm:workers_running{role="target"} 1.0',
        'pvlm:workers_running{role="draft"} 1.0',
        'pvlm:faults_total{kind="worker_lost",role="target"} 1.0',
        'pvlm:faults_total{kind="session_interrupted",role="target"} 1.0',
        'pvlm:requests_total{outcome="length"} 1.0',
        "pvlm:generation_tokens_total 400.0",
    ):
        assert line in text.splitlines()


async def test_a_worker_that_does_not_free_an_answer_is_named() -> None:
    async with Engine.create(TOY, close_timeout_s=0.5) as engine:
        with capture_logs() as logs:
            async with engine.stream(FRAMES, "?", **LONG) as chunks:
                await chunks.__anext__()
                workers()["draft"].suspend()
            await until(lambda: "draft" in engine.models)
    told = [line for line in logs if line["log_level"] != "debug"]
    names = ["answer_left", "session_not_freed", "worker_lost", "worker_restarted"]
    assert [line["event"] for line in told] == names
    assert [line.get("session") for line in told] == [1, 1, None, None]
    assert [line.get("role") for line in told] == [None] + ["draft"] * 3


async def test_messages_that_a_worker_has_dropped_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    registry = CollectorRegistry()
    damage = iter([True, False, True])

    def damaging(frames: Frames) -> list[bytes]:
        parts = [bytes(part) for part in framed(frames)]
        if next(damage, False):
            parts[-1] = parts[-1][:-1] + bytes([parts[-1][-1] ^ 1])
        return parts

    async with Engine.create(TOY, method="ar", metrics=PrometheusMetrics(registry)) as engine:
        monkeypatch.setattr("pvlm.transports.unix.framed", damaging)
        with capture_logs() as logs:
            answer = await engine.answer(FRAMES, "?", max_tokens=20, ignore_eos=True)
            await engine.health()
        assert list(answer.tokens) == ToyBackend().greedy(20, end_tokens=())
        text = generate_latest(registry).decode()
    dropped = [line for line in logs if line["event"] == "message_dropped"]
    count = sum(line["count"] for line in dropped)
    assert count >= 2  # and what came twice then
    assert {(line["role"], line["end"], line["log_level"]) for line in dropped} == {("target", "worker", "warning")}
    assert f'pvlm:faults_total{{kind="message_dropped",role="target"}} {count:.1f}' in text.splitlines()
