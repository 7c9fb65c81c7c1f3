"""Slow disks: models that load shard by shard with pauses, and a reader that waits for its file."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from pvlm.video.pyav_reader import PyAVReader
from pvlm_backends.emulated import EmulatedBackend
from pvlm_backends.raw import TorchBackend
from pvlm_protocols.backend import LoadOptions
from tests.chaos.faults import worker_chaos

OnProgress = Callable[[float], None]
SLOW_READS = 0.1
"""Share of the reads."""


def paused(on_progress: OnProgress | None) -> OnProgress:
    """A pause follows every shard."""
    chaos = worker_chaos()
    choose = random.Random(os.getpid())

    def progress(fraction: float) -> None:
        if on_progress is not None:
            on_progress(fraction)
        if chaos is not None and chaos.shard_s:
            with Path(chaos.log).open("a") as file:
                file.write("slow-load\n")
            time.sleep(choose.uniform(0, chaos.shard_s))

    return progress


class SlowEmulated(EmulatedBackend):
    @classmethod
    def load(cls, options: LoadOptions, on_progress: OnProgress | None = None) -> EmulatedBackend:
        return super().load(options, paused(on_progress))


class SlowTorch(TorchBackend):
    @classmethod
    def load(cls, options: LoadOptions, on_progress: OnProgress | None = None) -> TorchBackend:
        return super().load(options, paused(on_progress))


class SlowReader(PyAVReader):
    """Now and then it waits for longer than an engine does."""

    def read(self, indices: Sequence[int]) -> np.ndarray:
        if random.random() < SLOW_READS:
            time.sleep(60)
        return super().read(indices)
