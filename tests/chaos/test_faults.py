"""Every injector injects: else a storm would be a calm day."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import anyio
import pytest

from pvlm import Engine, VideoError
from pvlm.transports import sockets
from pvlm.transports.framing import FrameReader, framed
from pvlm_protocols.codec import ProtocolError
from pvlm_protocols.messages import Ping, Pong, Stop
from tests.chaos.faults import (
    Faults,
    Line,
    Rates,
    WorkerChaos,
    faulty_connections,
    faulty_workers,
    told_by_workers,
)
from tests.chaos.storm import EMULATED, FRAMES, SETTINGS, Figures, kill, stop
from tests.support.plugin import ROOT
from tests.workers.conftest import until

pytestmark = pytest.mark.anyio
MESSAGES = 200
KINDS = ("drop", "repeat", "swap", "corrupt", "delay")


def through_a_line(**rates: float) -> list[list[bytes]]:
    line = Line(Faults(Rates(**rates), seed=1))
    return [[bytes(f) for f in out] for n in range(100) for out in line.passes([b"%d" % n, b"frame"])]


def test_what_a_line_does_to_messages() -> None:
    sent = [[b"%d" % n, b"frame"] for n in range(100)]
    assert through_a_line() == sent
    dropped = through_a_line(drop=0.2)
    assert 60 < len(dropped) < 95
    assert all(message in sent for message in dropped)
    repeated = through_a_line(repeat=0.2)
    assert 105 < len(repeated) < 140
    swapped = through_a_line(swap=0.2)
    assert swapped != sent
    assert sorted(swapped) == sorted(sent[: 99 if len(swapped) < 100 else 100])
    damaged = through_a_line(corrupt=0.2)
    assert len(damaged) == 100
    assert 5 < sum(a != b for a, b in zip(damaged, sent, strict=True)) < 40


def test_a_damaged_stream_is_out_of_step() -> None:
    faults = Faults(Rates(stream=1.0), seed=1)
    stream = b"".join(bytes(part) for _ in range(50) for part in framed([b"message", b"frame"]))
    with faulty_connections(faults):
        found = [item for at in range(0, len(stream), 40) for item in FrameReader().feed(stream[at : at + 40])]
    assert faults.counts["stream"] > 20
    assert any(isinstance(item, ProtocolError) for item in found)
    calm = FrameReader().feed(stream)
    assert [item for item in calm if isinstance(item, ProtocolError)] == []


@pytest.mark.parametrize("transport", ["ipc", "tcp"])
async def test_connections_suffer_at_both_ends_and_lose_nothing(transport: str, tmp_path: Path) -> None:
    """An actor in a process of its own that says back what it hears."""
    rates = Rates(drop=0.05, repeat=0.05, swap=0.05, corrupt=0.05, delay=0.05, stream=0.05, delay_s=0.01)
    endpoint = f"ipc://{tmp_path}/draft" if transport == "ipc" else "tcp://127.0.0.1:*"
    faults, log = Faults(rates, seed=3), tmp_path / "log"
    with faulty_workers(WorkerChaos(rates=rates, seed=3, log=str(log)), tmp_path / "site"), faulty_connections(faults):
        channel = sockets.listen(endpoint)
        # The last words tell its `sitecustomize` that this is a worker.
        command = [sys.executable, "-m", "tests.transports.echo_actor", channel.endpoint, "worker", "--role", "draft"]
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)  # noqa: ASYNC220
        try:
            with anyio.fail_after(60):
                for nonce in range(MESSAGES):
                    channel.post(Ping(nonce=nonce))
                for nonce in range(MESSAGES):
                    assert await channel.receive() == Pong(nonce=nonce, role="draft", progress=process.pid)
                channel.post(Stop())
        finally:
            process.kill()
            process.wait()
            await channel.aclose()
    told = set(told_by_workers(log))
    kinds = {*KINDS, "stream"} if transport == "ipc" else set(KINDS)
    assert set(faults.counts) >= kinds - {"stream"}
    assert told >= kinds - {"stream", "delay"}
    assert transport == "tcp" or "stream" in told | set(faults.counts)
    assert channel.dropped > 0
    assert channel._wire.link.resent > 0


@pytest.mark.chaos
async def test_strikes_hit_workers_and_disks_are_slow(tmp_path: Path) -> None:
    log = tmp_path / "log"
    chaos = WorkerChaos(rates=Rates(), seed=1, log=str(log), shard_s=0.1)
    figures, choose = Figures(name="injectors"), random.Random(1)
    settings = {**SETTINGS, **EMULATED, "hang_timeout_s": 1.5, "video_reader": "slow", "decode_timeout_s": 10.0}
    with faulty_workers(chaos, tmp_path / "site"):
        async with Engine.create(settings) as engine:
            assert "slow-load" in told_by_workers(log)
            before = engine.processes
            while not {"kill target", "stop draft, for good"} <= set(figures.faults):
                await until(lambda: len(engine.models) == 2)
                await choose.choice([kill, stop])(engine, choose, figures)
                await anyio.sleep(0.1)
            await until(lambda: len(engine.models) == 2)
            await until(lambda: engine.processes["target"] != before["target"])
            await until(lambda: len(engine.models) == 2 and engine.processes["draft"] != before["draft"])
            health = await engine.health()
            assert health["target"].restarts > 0
            assert health["draft"].restarts > 0
            clip = ROOT / "pvlm" / "bundled" / "clips" / "one-scene.mp4"
            with pytest.raises(VideoError, match="decoding took longer than 10 s"):
                for _ in range(30):
                    await engine.answer(clip, "?", max_tokens=1)
            assert (await engine.answer(FRAMES, "?", max_tokens=5)).tokens


def test_nothing_is_faulty_behind_the_block() -> None:
    from pvlm.transports.wire import Wire

    before = Wire.__init__, Wire.arrived, FrameReader.feed
    with faulty_connections(Faults(Rates(), 1)):
        assert (Wire.__init__, Wire.arrived, FrameReader.feed) != before
    assert (Wire.__init__, Wire.arrived, FrameReader.feed) == before
