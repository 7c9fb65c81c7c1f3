"""A backend that does not load, each model in its own way. For tests of what an engine says then."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable

import msgspec

from pvlm_protocols.backend import LoadOptions
from tests.support.toy import ToyBackend


class BrokenBackend(ToyBackend):
    @classmethod
    def load(cls, options: LoadOptions, on_progress: Callable[[float], None] | None = None) -> ToyBackend:
        """``options.model``: what goes wrong, or a toy's noise."""
        match options.model:
            case "memory":
                raise MemoryError("cannot allocate 144 GiB")
            case "package":
                import no_such_package  # type: ignore[import-not-found]  # noqa: F401
            case "exit":
                sys.stderr.write("the driver is too old\n")
                sys.stderr.flush()
                os._exit(3)
            case "info":
                backend = super().load(LoadOptions(model="0", role=options.role))
                backend.info = msgspec.structs.replace(backend.info, vocab_size=0)
                return backend
            case "hang":
                time.sleep(600)
        return super().load(options, on_progress)
