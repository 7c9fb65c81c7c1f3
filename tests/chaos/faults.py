"""Faults on purpose. What a connection does to messages is done right below the link, at either end of ipc and tcp.

In this process `faulty_connections` does it; in a worker its ``sitecustomize``, by the environment that
`faulty_workers` sets.
"""

from __future__ import annotations

import asyncio
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import msgspec

from pvlm.transports.framing import FrameReader
from pvlm.transports.wire import Wire, WireChannel
from pvlm_protocols.codec import Buffer, ProtocolError
from tests.support.plugin import plugins

ENVIRONMENT = "PVLM_CHAOS"
ENTRY_POINTS = """
[pvlm.backends]
slow-emulated = tests.chaos.slow:SlowEmulated
slow-torch = tests.chaos.slow:SlowTorch
[pvlm.video_readers]
slow = tests.chaos.slow:SlowReader
"""

Frames = Sequence[Buffer]


class Rates(msgspec.Struct, frozen=True, kw_only=True):
    """How often what happens to a message, 0 to 1. ``stream``: to what is read from a Unix socket at once."""

    drop: float = 0.0
    repeat: float = 0.0
    swap: float = 0.0
    corrupt: float = 0.0
    delay: float = 0.0
    stream: float = 0.0
    delay_s: float = 0.1
    """At most."""


class Faults:
    """Decides by a seed, and counts. ``log``: a file that is told of each, for the process may be killed."""

    def __init__(self, rates: Rates, seed: int, log: Path | None = None) -> None:
        self.rates = rates
        self.choose = random.Random(seed)
        self.counts: Counter[str] = Counter()
        self._log = log

    def happens(self, kind: str) -> bool:
        if self.choose.random() >= getattr(self.rates, kind):
            return False
        self.counts[kind] += 1
        if self._log is not None:
            with self._log.open("a") as file:
                file.write(f"{kind}\n")
        return True

    def damaged(self, frames: Frames) -> list[Buffer]:
        """A copy with a few bits flipped, or an end cut off."""
        copies = [bytearray(frame) for frame in frames]
        copy = self.choose.choice([copy for copy in copies if copy] or copies)
        if len(copy) > 1 and self.choose.random() < 0.3:
            del copy[self.choose.randrange(1, len(copy)) :]
        elif copy:
            for _ in range(self.choose.choice([1, 3, 20])):
                copy[self.choose.randrange(len(copy))] ^= 1 << self.choose.randrange(8)
        return [bytes(copy) for copy in copies]

    def damaged_stream(self, data: bytes) -> bytes:
        """With bits flipped, or bytes lost or put in, so that its reader is out of step."""
        copy, at = bytearray(data), self.choose.randrange(len(data))
        match self.choose.randrange(3):
            case 0:
                copy[at] ^= 1 << self.choose.randrange(8)
            case 1:
                del copy[at : at + self.choose.choice([1, 5, 60])]
            case _:
                copy[at:at] = self.choose.randbytes(self.choose.choice([1, 5, 60]))
        return bytes(copy)


class Line:
    """One direction of a connection."""

    def __init__(self, faults: Faults) -> None:
        self._faults = faults
        self._held: list[Frames] = []

    def passes(self, frames: Frames) -> list[Frames]:
        """What comes out now, when ``frames`` go in."""
        faults = self._faults
        if faults.happens("drop"):
            return []
        if faults.happens("swap"):
            self._held.append(frames)
            return []
        if faults.happens("corrupt"):
            frames = faults.damaged(frames)
        out = [frames, frames] if faults.happens("repeat") else [frames]
        out += self._held
        self._held = []
        return out


@contextmanager
def faulty_connections(faults: Faults) -> Iterator[None]:
    """Connections that are made from now on, in this process, are faulty, until the end of the block."""
    original_init, original_arrived, original_feed = Wire.__init__, Wire.arrived, FrameReader.feed

    def init(self: Wire[Any], decode: Any, write: Callable[[Frames], None], endpoint: str) -> None:
        outgoing = Line(faults)

        def write_faultily(frames: Frames) -> None:
            for passed in outgoing.passes(frames):
                if faults.happens("delay"):
                    _write_later(write, passed, faults.choose.uniform(0, faults.rates.delay_s))
                else:
                    write(passed)

        original_init(self, decode, write_faultily, endpoint)
        self._chaos_incoming = Line(faults)  # type: ignore[attr-defined]

    def arrived(self: Wire[Any], frames: Frames) -> Iterator[Any]:
        for passed in self._chaos_incoming.passes(frames):  # type: ignore[attr-defined]
            yield from original_arrived(self, passed)

    def feed(self: FrameReader, data: bytes) -> Iterator[list[bytes] | ProtocolError]:
        yield from original_feed(self, faults.damaged_stream(data) if faults.happens("stream") else data)

    Wire.__init__, Wire.arrived, FrameReader.feed = init, arrived, feed  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        Wire.__init__, Wire.arrived, FrameReader.feed = (  # type: ignore[method-assign]
            original_init,
            original_arrived,
            original_feed,
        )


def _write_later(write: Callable[[Frames], None], frames: Frames, seconds: float) -> None:
    """An engine's message is overtaken by those behind it; those of an actor, which has no event loop, wait with it."""
    channel = getattr(write, "__self__", None)
    if not isinstance(channel, WireChannel):
        time.sleep(seconds)
        write(frames)
        return

    def late() -> None:
        if not channel._arrivals.closed:
            write(frames)

    asyncio.get_running_loop().call_later(seconds, late)


# ---- in workers ---------------------------------------------------------------------------------------------------


class WorkerChaos(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker is told: rates and seed, a file to count in, and the longest pause of its disk behind a shard."""

    rates: Rates
    seed: int
    log: str
    shard_s: float = 0.0


@contextmanager
def faulty_workers(chaos: WorkerChaos, folder: Path) -> Iterator[None]:
    """Worker processes that are started within the block are faulty, and ``slow`` plug-ins are there. ``folder``: for
    what makes them so.
    """
    with plugins(folder, "pvlm-slow", ENTRY_POINTS):
        (folder / "sitecustomize.py").write_text(
            "import sys\nif 'worker' in sys.orig_argv:\n    from tests.chaos.faults import begin\n    begin()\n"
        )
        os.environ[ENVIRONMENT] = msgspec.json.encode(chaos).decode()
        try:
            yield
        finally:
            del os.environ[ENVIRONMENT]


def worker_chaos() -> WorkerChaos | None:
    """What this process, a worker, was told."""
    told = os.environ.get(ENVIRONMENT)
    return None if told is None else msgspec.json.decode(told, type=WorkerChaos)


def told_by_workers(log: Path) -> Counter[str]:
    """How often what happened there."""
    return Counter(log.read_text().split() if log.exists() else [])


until_the_end = ExitStack()


def begin() -> None:
    """Called by a worker's ``sitecustomize``; each process has random numbers of its own."""
    chaos = worker_chaos()
    assert chaos is not None
    role = sys.orig_argv[sys.orig_argv.index("--role") + 1]
    seed = hash((chaos.seed, role, os.getpid()))
    until_the_end.enter_context(faulty_connections(Faults(chaos.rates, seed, Path(chaos.log))))
