"""A backend that does not load, each model in its own way, or does not survive some questions. For tests of what an
engine does then.
"""

from __future__ import annotations

import dataclasses
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import torch

from pvlm_protocols.backend import LoadOptions, Prompt, Session
from tests.support.toy import SharingToyBackend, ToyBackend, ToySession


class Panic(BaseException):
    """As a library raises it that is written in Rust: nobody who handles an `Exception` sees it."""


class BrokenBackend(SharingToyBackend):
    """A question may say what goes wrong, at which role, and when: "panic target open", "kill draft extend"."""

    role = ""

    @classmethod
    def load(cls, options: LoadOptions, on_progress: Callable[[float], None] | None = None) -> ToyBackend:
        """``options.model``: what goes wrong, or a toy's noise. With a path after it, it goes wrong once."""
        what, _, path = options.model.partition(" ")
        if path and Path(path).exists():
            what = "0"
        elif path:
            Path(path).touch()
        match what:
            case "memory":
                raise MemoryError("cannot allocate 144 GiB")
            case "package":
                import no_such_package  # type: ignore[import-not-found]  # noqa: F401
            case "exit":
                sys.stderr.write("the driver is too old\n")
                sys.stderr.flush()
                os._exit(3)
            case "kill" | "panic":
                _go_wrong(what)
            case "info":
                backend = super().load(LoadOptions(model="0", role=options.role))
                backend.info = msgspec.structs.replace(backend.info, vocab_size=0)
                return backend
            case "hang":
                time.sleep(600)
            case "compute":
                until_s = time.monotonic() + 2.0
                while time.monotonic() < until_s:
                    pass
                what = "0"
        backend = super().load(dataclasses.replace(options, model=what), on_progress)
        backend.role = options.role
        return backend

    def open(self, prompt: Prompt, capacity: int) -> Session:
        return BrokenSession(self, prompt, capacity)


class BrokenSession(ToySession):
    def __init__(self, backend: BrokenBackend, prompt: Prompt, capacity: int) -> None:
        self._what, _, when = prompt.question.partition(" ")
        self._when = when.removeprefix(f"{backend.role} ")
        self._goes_wrong("open")
        super().__init__(backend, prompt, capacity)

    def extend(self, tokens: Sequence[int], *, on_progress: Callable[[], None] | None = None) -> torch.Tensor:
        if self.length >= 10:
            self._goes_wrong("extend")
        return super().extend(tokens, on_progress=on_progress)

    def _goes_wrong(self, when: str) -> None:
        if when == self._when:
            _go_wrong(self._what)


def _go_wrong(what: str) -> None:
    match what:
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "panic":
            raise Panic("index out of bounds")
        case "sleep":
            time.sleep(30)
