"""Slow disks: models that load shard by shard with pauses, or never, and a reader that waits for its file. And models
that do not survive some questions.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from pvlm.video.pyav_reader import PyAVReader
from pvlm_backends.emulated import EmulatedBackend
from pvlm_backends.processing import PreparedPrompt
from pvlm_backends.raw import TorchBackend
from pvlm_protocols.backend import LoadOptions, Prompt
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
        if chaos is not None and choose.random() < chaos.hangs and Path(chaos.armed or "").is_file():
            with Path(chaos.log).open("a") as file:
                file.write("hang-load\n")
            time.sleep(600)

    return progress


class SlowEmulated(EmulatedBackend):
    @classmethod
    def load(cls, options: LoadOptions, on_progress: OnProgress | None = None) -> EmulatedBackend:
        return super().load(options, paused(on_progress))


class PoisonedEmulated(SlowEmulated):
    """The question "poison target" kills the target, and "poison draft" the draft."""

    role = ""

    @classmethod
    def load(cls, options: LoadOptions, on_progress: OnProgress | None = None) -> EmulatedBackend:
        backend = super().load(options, on_progress)
        assert isinstance(backend, PoisonedEmulated)
        backend.role = options.role
        return backend

    def _prepare(self, prompt: Prompt) -> PreparedPrompt:
        if prompt.question == f"poison {self.role}":
            os.kill(os.getpid(), signal.SIGKILL)
        return super()._prepare(prompt)


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
