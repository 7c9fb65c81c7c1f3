"""Transformers' own decoding loops, for comparison, in a process with its own cores."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Literal

from pvlm.bench.model_process import ModelProcess
from pvlm.errors import OptionError
from pvlm.plugins import load_plugin
from pvlm_protocols.backend import LoadOptions, Prompt, Role

if TYPE_CHECKING:
    from pvlm_backends.hf.generation import GeneratedAnswer

Loop = Literal["generate", "assisted", "prompt-lookup"]

LOOKUP_TOKENS = 10
"""Tokens of prompt lookup, as in transformers' documentation."""

_BACKEND = "hf"


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


class PeerProcess(ModelProcess):
    """A process in which transformers runs both models, on given cores with as many threads."""

    def __init__(self, models: PeerModels, cores: Sequence[int]) -> None:
        super().__init__(f"transformers with '{models.target}'", cores, partial(_load, models, len(cores)))

    async def answer(self, loop: Loop, prompt: Prompt, max_tokens: int) -> GeneratedAnswer:
        """Answer greedily by one of the loops. The target's processor must have resized the frames of ``prompt``.

        Raises ModelError.
        """
        return await self._run(partial(_answer, loop, prompt, max_tokens))


# ---- in the process -----------------------------------------------------------------------------------------------

_loaded: dict[Role, Any] = {}


def _load(models: PeerModels, threads: int) -> None:
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
                    threads=threads,
                    trust_remote_code=models.trust_remote_code,
                )
            )


def _answer(loop: Loop, prompt: Prompt, max_tokens: int) -> GeneratedAnswer:
    answer: GeneratedAnswer = _loaded["target"].generate(
        prompt,
        max_tokens,
        assistant=_loaded["draft"] if loop == "assisted" else None,
        lookup_tokens=LOOKUP_TOKENS if loop == "prompt-lookup" else None,
    )
    return answer
