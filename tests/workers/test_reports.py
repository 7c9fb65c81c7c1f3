"""Faults of worker processes in the log and in the metrics: what an operator reads of them."""

from __future__ import annotations

import re

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from structlog.testing import capture_logs

from pvlm import Engine
from pvlm.telemetry.prometheus import PrometheusMetrics
from tests.support.toy import ToyBackend
from tests.workers.conftest import FRAMES, LONG, TOY, workers

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
    names = ["worker_lost", "session_interrupted", "worker_ready", "worker_restarted", "session_resumed", "answered"]
    assert [line["event"] for line in told] == names
    assert [line.get("session") for line in told] == [None, 1, None, None, 1, 1]
    assert [line.get("role") for line in told] == ["target"] * 5 + [None]
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


async def test_messages_that_a_worker_has_dropped_are_reported() -> None:
    """They arrived as they were sent, and are no messages of the protocol."""
    registry = CollectorRegistry()
    async with Engine.create(TOY, method="ar", metrics=PrometheusMetrics(registry)) as engine:
        channel = engine._pair._actors["target"]._actor.channel  # type: ignore[union-attr]
        with capture_logs() as logs:
            for _ in range(3):
                channel._wire._write([channel._wire._link.send([b"nonsense"])])  # type: ignore[attr-defined]
            answer = await engine.answer(FRAMES, "?", max_tokens=20, ignore_eos=True)
            await engine.health()
        assert list(answer.tokens) == ToyBackend().greedy(20, end_tokens=())
        text = generate_latest(registry).decode()
    (dropped,) = [line for line in logs if line["event"] == "message_dropped"]
    told = {name: dropped[name] for name in ("role", "count", "end", "log_level")}
    assert told == {"role": "target", "count": 3, "end": "worker", "log_level": "warning"}
    assert 'pvlm:faults_total{kind="message_dropped",role="target"} 3.0' in text.splitlines()


async def test_a_damaged_message_is_a_lost_worker() -> None:
    """The log says what was wrong, whichever end finds it, and the answer goes on."""
    async with Engine.create(TOY, method="ar") as engine:
        for direction in ("to the worker", "to the engine"):
            async with engine.stream(FRAMES, "?", **LONG) as chunks:
                await chunks.__anext__()
                wire = engine._pair._actors["target"]._actor.channel._wire  # type: ignore[union-attr]
                with capture_logs() as logs:
                    if direction == "to the worker":
                        wire._link._sent += 1
                    else:
                        wire._link._received += 1
                    await engine.health()
                    async for _ in chunks:
                        pass
            assert list(chunks.answer.tokens) == ToyBackend().greedy(400, end_tokens=())
            (lost,) = [line for line in logs if line["event"] == "worker_lost"]
            assert re.search(r"message \d+ follows message \d+", lost["reason"]), lost["reason"]
