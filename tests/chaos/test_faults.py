"""Every injector injects: else a storm would be a calm day."""

from __future__ import annotations

import itertools
import random
import subprocess
import sys
from pathlib import Path

import anyio
import pytest

from pvlm import Engine, VideoError
from pvlm.transports import sockets
from pvlm.transports.framing import FrameReader, framed
from pvlm.transports.link import ConnectionDamaged
from pvlm.transports.wire import Wire
from pvlm.workers.launch import LISTEN
from pvlm_protocols.messages import Ping, Pong
from tests.chaos.faults import (
    KINDS,
    Faults,
    Line,
    Schedule,
    WorkerChaos,
    faulty_connections,
    faulty_workers,
    told_by_workers,
)
from tests.chaos.storm import EMULATED, FRAMES, SETTINGS, Figures, kill, stop
from tests.support.plugin import ROOT
from tests.workers.conftest import until

pytestmark = pytest.mark.anyio


def faults_of(*kinds: str, every_s: float = 0.2) -> Faults:
    """On a clock that goes on by 10 ms whenever it is read."""
    ticks = itertools.count()
    return Faults(Schedule(every_s=every_s, kinds=kinds, delay_s=0), seed=1, clock=lambda: next(ticks) / 100)


def through_a_line(faults: Faults) -> list[list[bytes]]:
    line = Line(faults)
    return [[bytes(f) for f in out] for n in range(200) for out in line.passes([b"%d" % n, b"frame"])]


SENT = [[b"%d" % n, b"frame"] for n in range(200)]


def test_a_line_without_faults_passes_everything() -> None:
    assert through_a_line(Faults(Schedule(), seed=1)) == SENT


@pytest.mark.parametrize("kind", ["drop", "repeat", "swap", "corrupt", "delay"])
def test_what_a_line_does_to_messages(kind: str) -> None:
    """As often as the schedule says: here, to every twentieth message on average."""
    faults = faults_of(kind)
    passed = through_a_line(faults)
    happened = faults.counts[kind]
    assert 4 <= happened <= 20
    match kind:
        case "drop":
            assert len(passed) == 200 - happened
            assert all(message in SENT for message in passed)
        case "repeat":
            assert len(passed) == 200 + happened
        case "swap":
            assert passed != SENT
            assert sorted(passed) == sorted(SENT[: len(passed)])
        case "corrupt":
            assert sum(a != b for a, b in zip(passed, SENT, strict=True)) == happened
        case "delay":
            assert passed == SENT


def test_a_damaged_stream_is_out_of_step() -> None:
    stream = b"".join(bytes(part) for _ in range(50) for part in framed([b"message", b"frame"]))
    faults = faults_of("stream", every_s=0.01)
    reader = FrameReader()
    with faulty_connections(faults), pytest.raises(ConnectionDamaged):
        for at in range(0, len(stream), 40):
            list(reader.feed(stream[at : at + 40]))
    assert faults.counts["stream"] > 0
    assert len(list(FrameReader().feed(stream))) == 50


@pytest.mark.parametrize("end", ["engine", "worker"])
@pytest.mark.parametrize(
    ("transport", "kind"),
    [(transport, kind) for transport in ("ipc", "tcp") for kind in KINDS if (transport, kind) != ("tcp", "stream")],
)
async def test_a_connection_ends_with_the_first_fault(transport: str, kind: str, end: str, tmp_path: Path) -> None:
    """Of an actor in a process of its own that says back what it hears; it only lasts through a delay.

    It is spoken to until the fault has happened: the loss of a message shows when the next one comes.
    """
    schedule, calm, log = Schedule(every_s=0.1, kinds=(kind,), delay_s=0.01), Schedule(), tmp_path / "log"
    faults = Faults(schedule if end == "engine" else calm, seed=3)
    chaos = WorkerChaos(schedule=schedule if end == "worker" else calm, seed=3, log=str(log))

    def happened() -> int:
        return (faults.counts if end == "engine" else told_by_workers(log))[kind]

    with faulty_workers(chaos, tmp_path / "site"), faulty_connections(faults):
        channel = sockets.listen(LISTEN[transport])
        # The last words tell its `sitecustomize` that this is a worker.
        command = [sys.executable, "-m", "tests.transports.echo_actor", channel.endpoint, "worker", "--role", "draft"]
        process = subprocess.Popen(command, cwd=ROOT, pass_fds=channel.descriptors)  # noqa: ASYNC220
        channel.handed_over()
        sent, heard = 0, 0
        try:
            with anyio.fail_after(60):
                while not channel.gone.is_set() and not (kind == "delay" and happened() and heard == sent):
                    if not (kind == "delay" and happened()):
                        channel.post(Ping(nonce=sent))
                        sent += 1
                    with anyio.move_on_after(0.01):
                        assert await channel.receive() == Pong(nonce=heard, role="draft", progress=process.pid)
                        heard += 1
        finally:
            process.kill()
            process.wait()
            await channel.aclose()
    assert happened() > 0
    assert (heard == sent) == (kind == "delay")


@pytest.mark.chaos
async def test_strikes_hit_workers_and_disks_are_slow(tmp_path: Path) -> None:
    log = tmp_path / "log"
    chaos = WorkerChaos(schedule=Schedule(), seed=1, log=str(log), shard_s=0.1)
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
                for _ in range(150):  # until one of them is read slowly
                    await engine.answer(clip, "?", max_tokens=1)
            assert (await engine.answer(FRAMES, "?", max_tokens=5)).tokens


def test_nothing_is_faulty_after_the_block() -> None:
    before = Wire.__init__, FrameReader.feed
    with faulty_connections(Faults(Schedule(), 1)):
        assert (Wire.__init__, FrameReader.feed) != before
    assert (Wire.__init__, FrameReader.feed) == before
