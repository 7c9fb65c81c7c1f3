"""Workers that people run: engines take them, lose them and take them back, and take nobody else."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import anyio
import pytest
from anyio.to_thread import run_sync

from pvlm import ConfigError, Engine, EngineConfig, ModelError, ModelMismatch, TargetLost
from pvlm.cli import main
from pvlm.trace import Trace
from pvlm.trace.timeline import timeline
from pvlm.transports.curve import AUTHORIZED
from tests.support.pair import PAIR
from tests.support.toy import ToyBackend
from tests.workers import conftest
from tests.workers.conftest import FRAMES, PATIENCE_S, until
from tests.workers.remote_workers import RemoteWorker, free_port, key_pairs, remote_worker, wait_until_loaded

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("_toys", "_nothing_left")]
TOY: dict[str, Any] = {**conftest.TOY, "transport": "inproc"}
"""What is not elsewhere runs in this process, which starts at once."""
OPTIONS: dict[str, Any] = {"max_tokens": 300, "ignore_eos": True}
EXPECTED = ToyBackend().greedy(300, end_tokens=())


TWO_DRAFTS = ("draft", "second draft")


class Standing(NamedTuple):
    """Workers that are there for all tests: two drafts and a target, toys without keys, and the small draft with."""

    workers: dict[str, RemoteWorker]
    endpoints: dict[str, str]
    engine_keys: Path
    worker_keys: Path


@pytest.fixture(scope="module")
def standing(tmp_path_factory: pytest.TempPathFactory, _toys: None) -> Iterator[Standing]:
    folder = tmp_path_factory.mktemp("remote")
    engine_keys, worker_keys = key_pairs(folder)
    endpoints = {name: f"tcp://127.0.0.1:{free_port()}" for name in ("draft", "target", "small")}
    found = {}
    with ExitStack() as running:
        for name, role in (("draft", "draft"), ("second draft", "draft"), ("target", "target")):
            started = remote_worker(role, TOY[role], endpoints[role], folder / name)
            found[name] = running.enter_context(started)
        found["small"] = running.enter_context(
            remote_worker(
                "draft",
                PAIR["draft"],
                endpoints["small"],
                folder / "small",
                "--keys",
                str(worker_keys),
                backend="torch",
            )
        )
        for worker in found.values():
            wait_until_loaded(worker)
        yield Standing(found, endpoints, engine_keys, worker_keys)


# ---- taken --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", ["draft", "target"])
async def test_a_worker_serves_one_engine_after_the_other(role: str, standing: Standing) -> None:
    """The times that it reports are on the engine's clock."""
    pids = [standing.workers[name].process.pid for name in (TWO_DRAFTS if role == "draft" else ("target",))]
    for _ in range(2):
        async with Engine.create(TOY, **{f"{role}_listen": standing.endpoints[role]}) as engine:
            trace = Trace()
            answer = await engine.answer(FRAMES, "?", trace=trace, window=4, **OPTIONS)  # else the draft may rest
            assert list(answer.tokens) == EXPECTED
            assert answer.stats.accepted_tokens > 0
            health = (await engine.health())[role]
            assert (health.state, health.address) == ("running", "127.0.0.1")
            assert health.pid in pids
            assert role in engine.models
            assert role not in engine.processes
            line = timeline(trace.recording())
            assert all(-50 < piece.begin_ms <= piece.end_ms < line.end_ms + 50 for piece in line.slices)


async def test_both_may_be_elsewhere(standing: Standing) -> None:
    listening = {f"{role}_listen": standing.endpoints[role] for role in ("draft", "target")}
    async with Engine.create(TOY, **listening) as engine:
        assert list((await engine.answer(FRAMES, "?", **OPTIONS)).tokens) == EXPECTED
        assert engine.processes == {}


async def test_an_unknown_key_is_refused_until_it_is_authorized(standing: Standing, tmp_path: Path) -> None:
    """And then the engine answers without the weights of the model: tokenizer and processor are enough."""
    listening = {"draft_listen": standing.endpoints["small"], "keys": str(standing.engine_keys)}
    settings: dict[str, Any] = {**PAIR, **listening, "transport": "inproc"}
    worker = standing.workers["small"]
    known = standing.engine_keys / AUTHORIZED / "elsewhere.key"
    known.unlink()
    with pytest.raises(ModelError, match=r"no draft worker has come .* refused, the last since its key .* --keys DIR`"):
        async with Engine.create(settings, start_timeout_s=7.0):
            raise AssertionError
    await until(lambda: "the engine does not know this worker's key" in worker.log)
    shutil.copy(standing.worker_keys / "elsewhere.key", known)
    folder = tmp_path / "draft"
    shutil.copytree(PAIR["draft"], folder, ignore=shutil.ignore_patterns("*.safetensors"))
    async with Engine.create(settings, draft=str(folder)) as engine:
        options = {"max_tokens": 30, "ignore_eos": True}
        expected = await engine.answer(FRAMES, "What happens?", method="ar", **options)
        answer = await engine.answer(FRAMES, "What happens?", window=4, **options)  # fixed: it is waited for
        assert answer.tokens == expected.tokens
        assert answer.stats.drafted_tokens > 0
        assert (await engine.health())["draft"].address == "elsewhere (127.0.0.1)"


async def test_a_worker_is_told_why_it_is_not_taken(standing: Standing) -> None:
    """One with another tokenizer, and one of another role."""
    worker, endpoint = standing.workers["small"], standing.endpoints["small"]
    with pytest.raises(ModelMismatch, match=r"whose tokenizer is not that of '0\.5@1' here"):
        async with Engine.create(TOY, draft_listen=endpoint, keys=str(standing.engine_keys)):
            raise AssertionError
    await until(lambda: "whose tokenizer is not that of" in worker.log)
    with pytest.raises(ModelError, match="a draft worker has come to the port of the targets"):
        async with Engine.create(TOY, target_listen=standing.endpoints["draft"]):
            raise AssertionError


# ---- lost and taken back ------------------------------------------------------------------------------------------


async def test_a_second_draft_waits_and_takes_over(standing: Standing) -> None:
    """From one that stands still, and so does not hear that it was let go before it goes on; then it waits."""
    drafts = {standing.workers[name].process.pid: standing.workers[name].process for name in TWO_DRAFTS}
    options = {"max_tokens": 100_000, "ignore_eos": True}
    try:
        async with Engine.create(TOY, draft_listen=standing.endpoints["draft"], hang_timeout_s=1.0) as engine:
            await until(lambda: all("connected " in standing.workers[name].log for name in TWO_DRAFTS))
            async with engine.stream(FRAMES, "?", **options) as chunks:
                tokens = list((await chunks.__anext__()).tokens)
                for turn in range(3):
                    current = (await engine.health())["draft"].pid
                    assert current is not None
                    drafts[current].send_signal(signal.SIGSTOP)
                    async for chunk in chunks:
                        tokens += chunk.tokens
                        back = "draft" in engine.models and (await engine.health())["draft"].restarts > turn
                        if back and len(chunk.tokens) > 2:  # more than the target writes alone
                            break
                    drafts[current].send_signal(signal.SIGCONT)
                    health = (await engine.health())["draft"]
                    assert health.pid in drafts
                    assert health.sessions == 1
        assert tokens == ToyBackend().greedy(len(tokens), end_tokens=())
    finally:
        for process in drafts.values():
            process.send_signal(signal.SIGCONT)


async def test_answers_do_not_wait_for_a_remote_target_for_ever(standing: Standing) -> None:
    """But the engine does: when there is one again, the next answer has it."""
    process, endpoint = standing.workers["target"].process, standing.endpoints["target"]
    try:
        async with Engine.create(TOY, target_listen=endpoint, hang_timeout_s=1.0, start_timeout_s=7.0) as engine:
            async with engine.stream(FRAMES, "?", max_tokens=100_000, ignore_eos=True) as chunks:
                await chunks.__anext__()
                process.send_signal(signal.SIGSTOP)
                with pytest.raises(TargetLost, match=r"in the middle of an answer: .* no target worker has come"):
                    async for _ in chunks:
                        pass
            assert (await engine.health())["target"].state == "lost"
            with pytest.raises(TargetLost, match="is gone"):
                await engine.answer(FRAMES, "?", **OPTIONS)
            process.send_signal(signal.SIGCONT)
            await until(lambda: "target" in engine.models)
            assert list((await engine.answer(FRAMES, "?", **OPTIONS)).tokens) == EXPECTED
    finally:
        process.send_signal(signal.SIGCONT)


async def test_workers_end_when_they_are_told_to(standing: Standing) -> None:
    """While they have an engine too, which goes on."""
    async with Engine.create(TOY, draft_listen=standing.endpoints["draft"]) as engine:
        for name, stop, expected in (("draft", signal.SIGINT, 130), ("second draft", signal.SIGTERM, -signal.SIGTERM)):
            worker = standing.workers[name]
            worker.process.send_signal(stop)
            with anyio.fail_after(PATIENCE_S):
                assert await run_sync(worker.process.wait) == expected
            assert "Traceback" not in worker.log
        await until(lambda: "draft" not in engine.models)
        assert (await engine.health())["draft"].state == "away"
        assert list((await engine.answer(FRAMES, "?", **OPTIONS)).tokens) == EXPECTED


# ---- the command --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--connect", "tcp://192.0.2.1:5555"], "'tcp://192.0.2.1:5555' is on another host: keys are needed"),
        (["--connect", "5555"], "--connect: '5555' is no endpoint: write tcp://HOST:PORT"),
        (["--connect", "tcp://127.0.0.1:5555", "--model", "/no/such"], "cannot load the draft '/no/such'"),
        (["--connect", "tcp://127.0.0.1:5555", "--keys", "/no/such"], "'/no/such' has no secret key"),
    ],
)
def test_a_worker_that_cannot_be_is_one_clear_line(
    options: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["worker", "--role", "draft", *options]) == 1
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("pvlm: error: ")
    assert said in last


# ---- configuration ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"draft_listen": "tcp://0.0.0.0:5555"}, r"which other hosts can reach: keys are needed"),
        ({"draft_listen": "tcp://[::]:5555"}, r"which other hosts can reach: keys are needed"),
        ({"target_listen": "tcp://gpu2:5555"}, r"which other hosts can reach: keys are needed"),
        ({"target_listen": "tcp://127.0.0.1"}, r"target_listen: 'tcp://127\.0\.0\.1' is no endpoint: write tcp://HOST"),
        ({"target_listen": "tcp://127.0.0.1:0"}, "is no endpoint"),
        ({"target_listen": "ipc:///tmp/x"}, "is no endpoint"),
        ({"draft_listen": "tcp://127.0.0.1:5555", "draft": None}, "draft_listen without a draft: name its checkpoint"),
        ({"draft_listen": "tcp://127.0.0.1:5555", "target": "a/b"}, "draft_listen without a draft"),
        ({"draft_listen": "tcp://127.0.0.1:5555", "method": "ar"}, "draft_listen without a draft"),
        (
            {"draft_listen": "tcp://127.0.0.1:5555", "target_listen": "tcp://localhost:5555"},
            "target_listen and draft_listen need ports of their own",
        ),
        ({"keys": "keys"}, "keys are for workers on other hosts: give target_listen or draft_listen too"),
    ],
)
def test_what_cannot_be_is_said_at_once(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        EngineConfig(**settings)


async def test_a_port_that_cannot_be_had_is_an_error(tmp_path: Path) -> None:
    other, _ = key_pairs(tmp_path)
    with pytest.raises(ConfigError, match="cannot listen on draft_listen 'tcp://192.0.2.1:5555': "):
        async with Engine.create(TOY, draft_listen="tcp://192.0.2.1:5555", keys=str(other)):
            raise AssertionError
    with pytest.raises(ConfigError, match="has no secret key"):
        async with Engine.create(TOY, draft_listen="tcp://127.0.0.1:5555", keys=str(tmp_path / "none")):
            raise AssertionError
