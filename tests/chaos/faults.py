"""Faults on purpose: what a connection does to messages, right below the link, at either end of ipc and tcp.

In this process `faulty_connections` does it; in a worker its ``sitecustomize``, by the environment that
`faulty_workers` sets.
"""

from __future__ import annotations

import math
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
from pvlm.transports.wire import Wire
from pvlm_protocols.codec import Buffer
from tests.support.plugin import plugins

ENVIRONMENT = "PVLM_CHAOS"
ENTRY_POINTS = """
[pvlm.backends]
slow-emulated = tests.chaos.slow:SlowEmulated
slow-torch = tests.chaos.slow:SlowTorch
poisoned = tests.chaos.slow:PoisonedEmulated
[pvlm.video_readers]
slow = tests.chaos.slow:SlowReader
"""

Frames = Sequence[Buffer]


KINDS = ("drop", "repeat", "swap", "corrupt", "delay", "stream")
"""``stream`` happens to the bytes that are read from a Unix socket at once, the others to a message that is sent.

All but ``delay`` are a lost connection.
"""


class Schedule(msgspec.Struct, frozen=True, kw_only=True):
    """When connection faults come, at one end: every ``every_s`` seconds on average (0: never), one of ``kinds``."""

    every_s: float = 0.0
    kinds: tuple[str, ...] = KINDS
    delay_s: float = 0.1
    """At most."""


class Faults:
    """Decides by a seed, and counts. ``log``: a file where each fault is noted, for the process may be killed.
    ``armed``: the file with which the schedule begins; an engine that cannot be opened is no storm.
    """

    def __init__(
        self,
        schedule: Schedule,
        seed: int,
        log: Path | None = None,
        armed: Path | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.schedule = schedule
        self.choose = random.Random(seed)
        self.counts: Counter[str] = Counter()
        self._clock = clock
        self._log = log
        self._armed = armed
        self._kind = ""
        self._due_s = math.inf
        if armed is None:
            self._plan()

    def _plan(self) -> None:
        if self.schedule.every_s:
            self._kind = self.choose.choice(self.schedule.kinds)
            self._due_s = self._clock() + self.choose.expovariate(1 / self.schedule.every_s)

    def due(self, *kinds: str) -> str:
        """The fault that happens now, if it is one of ``kinds``; else empty."""
        if self._armed is not None and self._armed.exists():
            self._armed = None
            self._plan()
        if self._kind not in kinds or self._clock() < self._due_s:
            return ""
        happens = self._kind
        self.counts[happens] += 1
        if self._log is not None:
            with self._log.open("a") as file:
                file.write(f"{happens}\n")
        self._plan()
        return happens

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
    """What one end of a connection sends."""

    def __init__(self, faults: Faults) -> None:
        self._faults = faults
        self._held: list[Frames] = []

    def passes(self, frames: Frames) -> list[Frames]:
        """What comes out now, when ``frames`` go in."""
        faults = self._faults
        out = [frames]
        match faults.due("drop", "repeat", "swap", "corrupt", "delay"):
            case "drop":
                out = []
            case "swap":
                self._held.append(frames)
                return []
            case "corrupt":
                out = [faults.damaged(frames)]
            case "repeat":
                out = [frames, frames]
            case "delay":
                time.sleep(faults.choose.uniform(0, faults.schedule.delay_s))
        out += self._held
        self._held = []
        return out


@contextmanager
def faulty_connections(faults: Faults) -> Iterator[None]:
    """Connections that are made from now on, in this process, are faulty, until the end of the block."""
    original_init, original_feed = Wire.__init__, FrameReader.feed

    def init(self: Wire[Any], decode: Any, write: Callable[[Sequence[Frames]], None], endpoint: str) -> None:
        outgoing = Line(faults)

        def write_faultily(messages: Sequence[Frames]) -> None:
            write([passed for frames in messages for passed in outgoing.passes(frames)])

        original_init(self, decode, write_faultily, endpoint)

    def feed(self: FrameReader, data: bytes) -> Iterator[list[bytes]]:
        yield from original_feed(self, faults.damaged_stream(data) if faults.due("stream") else data)

    Wire.__init__, FrameReader.feed = init, feed  # type: ignore[method-assign]
    try:
        yield
    finally:
        Wire.__init__, FrameReader.feed = original_init, original_feed  # type: ignore[method-assign]


# ---- in workers ---------------------------------------------------------------------------------------------------


class WorkerChaos(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker gets: schedule and seed, a file to count in, and the longest pause of its disk after a shard.
    ``hangs``: the share of models that never load once the schedule has begun.
    """

    schedule: Schedule
    seed: int
    log: str
    armed: str | None = None
    shard_s: float = 0.0
    hangs: float = 0.0


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
    armed = None if chaos.armed is None else Path(chaos.armed)
    until_the_end.enter_context(faulty_connections(Faults(chaos.schedule, seed, Path(chaos.log), armed)))
