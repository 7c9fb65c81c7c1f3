"""Transformers' own decoding loops, for comparison, in a process with its own cores."""

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
"""Tokens of prompt lookup, as in transformers' documentation."""

_BACKEND = "hf"
T = TypeVar("T")


def check_transformers() -> None:
    """Raises OptionError if transformers is not installed."""
    if find_spec("transformers") is None:
        raise OptionError(
            "generate, assisted and prompt-lookup need transformers: pip install 'pvlm[hf]', "
            "or choose other methods (--methods)"
        )


@dataclass(frozen=True)
class PeerModels:
    """Checkpoint directories or hub names, and options for loading them."""

    target: str
    draft: str | None
    device: str = "cpu"
    dtype: str = "auto"
    trust_remote_code: bool = False


class PeerProcess:
    """A process in which transformers runs both models, on given cores with as many threads. An async context manager.

    It is not a worker of an engine: no part of pvlm's runtime runs in it.
    """

    def __init__(self, models: PeerModels, cores: Sequence[int]) -> None:
        self.process = 0
        """Process id, while the process runs; 0 before."""
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
        """Answer greedily by one of the loops. The target's processor must have resized the frames of ``prompt``.

        Raises ModelError.
        """
        return await self._run(partial(_answer, loop, prompt, max_tokens))

    async def _run(self, what: Callable[[], T]) -> T:
        try:
            return await anyio.to_thread.run_sync(lambda: self._pool.submit(what).result(), abandon_on_cancel=True)
        except BrokenProcessPool as error:
            raise ModelError(
                f"the process in which transformers runs '{self._models.target}' has ended; "
                "its messages are on standard error"
            ) from error
        except Exception as error:
            raise ModelError(f"transformers with '{self._models.target}': {type(error).__name__}: {error}") from error


# ---- in the process -----------------------------------------------------------------------------------------------

_loaded: dict[Role, Any] = {}


def _load(models: PeerModels, cores: tuple[int, ...]) -> int:
    """Load both models. Returns the process id."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    os.sched_setaffinity(0, cores)
    os.environ["TRANSFORMERS_VERBOSITY"] = "error"  # it warns about its own calls
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
    """Exit when the parent dies for any reason. Otherwise a pool's process would wait for work forever."""
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
