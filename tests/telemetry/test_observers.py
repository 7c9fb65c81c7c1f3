"""Failing callbacks and a failing log do no harm to an engine."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from typing import Any

import pytest
import structlog
from structlog.testing import capture_logs

from pvlm import Engine, EngineStateError
from pvlm.log import Log, configure_logging
from pvlm.telemetry.metrics import FAULTS
from pvlm.trace import Trace
from tests.engine.conftest import FRAMES, TOY
from tests.support.totals import Totals
from tests.support.toy import ToyBackend

OPTIONS: dict[str, Any] = {"max_tokens": 30, "ignore_eos": True}
EXPECTED = ToyBackend().greedy(30, end_tokens=())


class Failing:
    """A progress callback, metrics and a recorder, each of which raises whenever it is called."""

    def __init__(self) -> None:
        self.calls = 0

    def _fail(self, *_: object, **__: object) -> None:
        self.calls += 1
        raise RuntimeError("seen enough")

    __call__ = add = observe = began = handled = ended = _fail


@pytest.mark.anyio
@pytest.mark.parametrize("observer", ["on_progress", "metrics", "trace"])
async def test_an_observer_that_raises_is_contained_and_reported_once(observer: str) -> None:
    failing = Failing()
    watching: dict[str, Any] = {} if observer == "trace" else {observer: failing}
    with capture_logs() as logs:
        async with Engine.create(TOY, **watching) as engine:
            trace: Any = failing if observer == "trace" else None
            answers = [await engine.answer(FRAMES, "?", trace=trace, **OPTIONS) for _ in range(2)]
            first = await engine.answer(FRAMES, "?", **OPTIONS)
            assert (await engine.health())["target"].state == "running"
    assert [list(answer.tokens) for answer in [*answers, first]] == [EXPECTED] * 3
    reported = [entry for entry in logs if entry["event"] == "observer_failed"]
    assert [(entry["observer"], entry["error"], entry["reason"]) for entry in reported] == [
        (observer, "RuntimeError", "seen enough")
    ]
    assert failing.calls > 2
    assert engine._observers.failures == {observer: failing.calls}


@pytest.mark.anyio
async def test_errors_of_observers_are_counted() -> None:
    failing, totals = Failing(), Totals()
    async with Engine.create(TOY, on_progress=failing, metrics=totals) as engine:
        recorder: Any = failing
        await engine.answer(FRAMES, "?", trace=recorder, **OPTIONS)
    assert totals.found[f"{FAULTS.name} observer_failed "] == failing.calls > 2


@pytest.mark.anyio
async def test_an_answer_of_an_unopened_engine_is_guarded_too() -> None:
    failing = Failing()
    with capture_logs() as logs:
        answer = await Engine.create(TOY, on_progress=failing, metrics=failing).answer(FRAMES, "?", **OPTIONS)
    assert list(answer.tokens) == EXPECTED
    assert sorted(e["observer"] for e in logs if e["event"] == "observer_failed") == ["metrics", "on_progress"]


@pytest.mark.anyio
async def test_a_trace_may_still_refuse_a_second_answer() -> None:
    trace = Trace()
    async with Engine.create(TOY) as engine:
        await engine.answer(FRAMES, "?", trace=trace, **OPTIONS)
        with pytest.raises(EngineStateError, match="this trace holds an answer already"):
            await engine.answer(FRAMES, "?", trace=trace, **OPTIONS)


# ---- the log ------------------------------------------------------------------------------------------------------


class Broken:
    """A stream whose writes fail."""

    def write(self, text: str) -> int:
        raise BrokenPipeError(32, "Broken pipe")

    def flush(self) -> None:
        pass


@pytest.mark.anyio
async def test_a_log_that_cannot_be_written_ends_no_answer(capsys: pytest.CaptureFixture[str]) -> None:
    stream: Any = Broken()
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(stream))
    totals = Totals()
    async with Engine.create(TOY, metrics=totals) as engine:
        left = asyncio.ensure_future(engine.answer(FRAMES, "?", max_tokens=100_000, ignore_eos=True))
        await asyncio.sleep(0.01)
        left.cancel()
        await asyncio.wait([left])
        assert [list((await engine.answer(FRAMES, "?", **OPTIONS)).tokens) for _ in range(3)] == [EXPECTED] * 3
    assert totals.found[f"{FAULTS.name} observer_failed "] >= 3


def test_lost_lines_are_counted_and_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    stream: Any = Broken()
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(stream))
    log = Log()
    for _ in range(3):
        log.warning("worker_lost", role="draft")
    assert (log.take_lost(), log.take_lost()) == (3, 0)
    said = capsys.readouterr()
    assert said.err == "pvlm: the log cannot be written (BrokenPipeError: [Errno 32] Broken pipe); lines are lost\n"
    assert said.out == ""


def test_a_program_that_configures_nothing_sees_warnings_alone_and_never_on_standard_output() -> None:
    code = "from pvlm.log import log; log.debug('a'); log.info('b', x=1); log.warning('c', reason='two words', n=2)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "c reason='two words' n=2\n")
    full = f"import logging; logging.basicConfig(level='INFO'); {code}"
    done = subprocess.run([sys.executable, "-c", full], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "INFO:pvlm:b x=1\nWARNING:pvlm:c reason='two words' n=2\n")


def test_configure_logging_shows_the_log_on_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("info", json=True)
    log = Log()
    log.debug("hidden")
    log.info("answered", session=3, reason="https://example.org/clip.mp4?token=abc")
    said = capsys.readouterr()
    assert said.out == ""
    line = json.loads(said.err)
    assert (line["event"], line["level"], line["session"]) == ("answered", "info", 3)
    assert line["reason"] == "https://example.org/clip.mp4?…"
    configure_logging("warning")
    log.info("hidden")
    log.warning("worker_lost", role="draft")
    said = capsys.readouterr()
    assert "worker_lost" in said.err
    assert "role=draft" in said.err
    assert "hidden" not in said.err
    with pytest.raises(ValueError, match="the log has no level 'loud': use one of debug, info, warning, error"):
        configure_logging("loud")  # type: ignore[arg-type]
