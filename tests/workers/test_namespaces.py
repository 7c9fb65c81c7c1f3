"""A worker on another host: in namespaces of network and time, over a link that is cut and mended in the middle of
answers, with a clock that runs a day ahead.
"""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import anyio
import pytest
from anyio.to_thread import run_sync
from structlog.testing import capture_logs

from pvlm import Engine
from pvlm.runtime.session import LiveSession
from pvlm.trace import Trace
from pvlm.trace.timeline import timeline
from pvlm_protocols.backend import Role
from pvlm_protocols.messages import FromActor, Opened
from tests.support.toy import ToyBackend
from tests.workers.conftest import FRAMES, TOY, until
from tests.workers.remote_workers import key_pairs, remote_worker, wait_until_loaded

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("_nothing_left", "_toys")]
PORT = 5599
AHEAD_S = 86_400
numbers = itertools.count(os.getpid() % 10_000)


def ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")


@dataclass(frozen=True)
class Link:
    """Between this namespace and that of the other host."""

    namespace: str
    device: str
    address: str

    def cut(self) -> None:
        ip("link", "set", self.device, "down")

    def mend(self) -> None:
        ip("link", "set", self.device, "up")


@pytest.fixture
def link() -> Iterator[Link]:
    if shutil.which("ip") is None:
        pytest.skip("there is no command ip (Debian: apt-get install iproute2)")
    number = next(numbers)
    there = Link(f"pvlm-{number}", f"pvlm{number}", f"10.213.{number % 250}.1")
    try:
        ip("netns", "add", there.namespace)
    except OSError as error:
        pytest.skip(f"network namespaces cannot be made here: {error}")
    try:
        ip("link", "add", there.device, "type", "veth", "peer", "name", "eth0", "netns", there.namespace)
        ip("addr", "add", f"{there.address}/24", "dev", there.device)
        ip("-n", there.namespace, "addr", "add", there.address.removesuffix("1") + "2/24", "dev", "eth0")
        ip("-n", there.namespace, "link", "set", "eth0", "up")
        there.mend()
        yield there
    finally:
        ip("netns", "del", there.namespace)


def other_time() -> list[str]:
    """A command that runs another in a namespace of time, where that can be had."""
    command = ["unshare", "--time", "--fork", "--kill-child", "--monotonic", str(AHEAD_S)]
    possible = shutil.which("unshare") and subprocess.run([*command, "true"], capture_output=True, check=False)
    return command if possible and possible.returncode == 0 else []


@pytest.mark.parametrize("role", ["draft", "target"])
async def test_a_link_that_is_cut_and_mended_changes_no_token(
    role: str, link: Link, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker is lost, tries again, and continues the same answer from its own cache: it prefills once."""
    opened: Counter[str] = Counter()
    receive = LiveSession.receive

    def counted(self: LiveSession, sender: Role, message: FromActor) -> None:
        opened[sender] += isinstance(message, Opened)
        receive(self, sender, message)

    monkeypatch.setattr(LiveSession, "receive", counted)
    engine_keys, worker_keys = key_pairs(tmp_path)
    endpoint = f"tcp://{link.address}:{PORT}"
    settings = {
        **TOY,
        "transport": "inproc",
        f"{role}_listen": endpoint,
        "keys": str(engine_keys),
        "hang_timeout_s": 4.0,
    }
    inside = ["ip", "netns", "exec", link.namespace, *other_time()]
    with remote_worker(
        role, TOY[role], endpoint, tmp_path / "log", "--keys", str(worker_keys), inside=inside
    ) as worker:
        await run_sync(wait_until_loaded, worker)
        async with Engine.create(settings) as engine:
            assert (await engine.health())[role].address == f"elsewhere ({link.address.removesuffix('1')}2)"
            trace = Trace()
            answer = await engine.answer(FRAMES, "?", max_tokens=60, ignore_eos=True, trace=trace)
            assert list(answer.tokens) == ToyBackend().greedy(60, end_tokens=())
            total_ms = answer.stats.total_s * 1000
            assert max(answer.stats.coordination_ms) < total_ms
            drawn = timeline(trace.recording()).slices
            assert {piece.row for piece in drawn} == {"target", "draft"}
            assert all(-total_ms < piece.begin_ms <= piece.end_ms < 2 * total_ms for piece in drawn)

            async def cut_and_mend() -> None:
                link.cut()
                await until(lambda: role not in engine.models)
                link.mend()

            with capture_logs() as logs:
                async with engine.stream(FRAMES, "?", max_tokens=100_000, ignore_eos=True) as chunks:
                    tokens = list((await chunks.__anext__()).tokens)
                    async with anyio.create_task_group() as tasks:
                        tasks.start_soon(cut_and_mend)
                        async for chunk in chunks:
                            tokens += chunk.tokens
                            back = role in engine.models and (await engine.health())[role].restarts
                            if back and len(chunk.tokens) > 2:  # more than the target writes alone
                                break
            health = (await engine.health())[role]
            assert health.restarts == 1
            assert "the connection to elsewhere" in health.reason
    (back,) = [line for line in logs if line["event"] == "worker_back"]
    assert back["kept"] == 1
    assert worker.log.count("session_resumed") == 1
    assert opened[role] == 2  # once for each answer: the cache stayed, and nothing was prefilled again
    assert tokens == ToyBackend().greedy(len(tokens), end_tokens=())
    assert "disconnected" in worker.log
