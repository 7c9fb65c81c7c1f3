"""What a user would pick instead: transformers' own decoding loops, in a process with cores of its own."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from multiprocessing import get_context, parent_process
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar

import anyio.to_thread

from pvlm.errors import ModelError, OptionError
from pvlm.plugins import load_plugin
from pvlm_protocols.backend import LoadOptions, Prompt, Role

if TYPE_CHECKING:
    from collections.abc import Callable

    from pvlm_backends.hf.generation import GeneratedAnswer

Loop = Literal["generate", "assisted", "prompt-lookup"]

LOOKUP_TOKENS = 10
"""Prompt lookup: what transformers' documentation uses."""

_BACKEND = "hf"
T = TypeVar("T")


def check_transformers() -> None:
    """Raises OptionError where transformers is not installed."""
    if find_spec("transformers") is None:
        raise OptionError(
            "generate, assisted and prompt-lookup are transformers' own: pip install 'pvlm[hf]', "
            "or name the methods to measure (--methods)"
        )


@dataclass(frozen=True)
class PeerModels:
    """Checkpoint directories or hub names, and how they are loaded."""

    target: str
    draft: str | None
    device: str = "cpu"
    dtype: str = "auto"
    trust_remote_code: bool = False


class PeerProcess:
    """A process in which transformers runs both models, on given cores with as many threads. An async context manager.

    It is no worker of an engine: nothing of pvlm runs beside transformers' loops.
    """

    def __init__(self, models: PeerModels, cores: Sequence[int]) -> None:
        self.process = 0
        """Its id, while it runs."""
        self._models = models
        self._cores = tuple(cores)
        self._pool = ProcessPoolExecutor(1, get_context("spawn"))

    async def __aenter__(self) -> Self:
        """Load the models. Raises ModelError."""
        try:
            self.process = await self._run(partial(_load, self._models, self._cores))
        except BaseException:
            self._stop()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stop()

    def _stop(self) -> None:
        self._pool.shutdown(cancel_futures=True)

    async def answer(self, loop: Loop, prompt: Prompt, max_tokens: int) -> GeneratedAnswer:
        """Answer greedily by one of the loops; ``prompt``'s frames as the target's processor resizes them.

        Raises ModelError.
        """
        return await self._run(partial(_answer, loop, prompt, max_tokens))

    async def _run(self, what: Callable[[], T]) -> T:
        try:
            return await anyio.to_thread.run_sync(lambda: self._pool.submit(what).result(), abandon_on_cancel=True)
        except BrokenProcessPool as error:
            raise ModelError(
                f"the process in which transformers runs '{self._models.target}' has ended; "
                "what it said is on standard error"
            ) from error
        except Exception as error:
            raise ModelError(f"transformers with '{self._models.target}': {type(error).__name__}: {error}") from error


# ---- in the process -----------------------------------------------------------------------------------------------

_loaded: dict[Role, Any] = {}


def _load(models: PeerModels, cores: tuple[int, ...]) -> int:
    """Returns the process's id."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in a terminal is the parent's to handle
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    os.sched_setaffinity(0, cores)
    os.environ["TRANSFORMERS_VERBOSITY"] = "error"  # it warns of how it calls itself
    backend: Any = load_plugin("pvlm.backends", _BACKEND)
    names: dict[Role, str | None] = {"target": models.target, "draft": models.draft}
    for role, name in names.items():
        if name is not None:
            _loaded[role] = backend.load(
                LoadOptions(
                    model=name,
                    role=role,
                    device=models.device,
                    dtype=models.dtype,
                    threads=len(cores),
                    trust_remote_code=models.trust_remote_code,
                )
            )
    return os.getpid()


def _leave_with_parent() -> None:
    """Exit when the parent dies, however it dies: a pool's process would wait for work for ever."""
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _answer(loop: Loop, prompt: Prompt, max_tokens: int) -> GeneratedAnswer:
    answer: GeneratedAnswer = _loaded["target"].generate(
        prompt,
        max_tokens,
        assistant=_loaded["draft"] if loop == "assisted" else None,
        lookup_tokens=LOOKUP_TOKENS if loop == "prompt-lookup" else None,
    )
    return answer
