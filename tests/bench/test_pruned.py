"""A target that itself sees a part of the video: what it sees, and that no engine answers like that."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from pvlm import ConfigError, Engine, ModelError
from pvlm.bench.pruned import PrunedView, answer_pruned
from pvlm_backends.raw import TorchBackend
from pvlm_protocols.backend import Backend, LoadOptions, Prompt, Session
from tests.support.pair import PAIR

FRAMES = np.random.default_rng(5).integers(0, 256, (4, 112, 112, 3), dtype=np.uint8)
PROMPT = Prompt("Describe the video.", FRAMES)


class Watched:
    """A backend whose sessions note the video tokens that they are to keep."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self.kept: list[torch.Tensor | None] = []

    def open(self, prompt: Prompt, capacity: int) -> Session:
        session = self._backend.open(prompt, capacity)
        prefill: Any = session.prefill

        def noted(keep: torch.Tensor | None = None, **how: Any) -> torch.Tensor:
            if "on_early_layer" not in how:
                self.kept.append(keep)
            return prefill(keep, **how)

        session.prefill = noted  # type: ignore[method-assign]
        return session

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)


@pytest.fixture(scope="module")
def target() -> Backend:
    return TorchBackend.load(LoadOptions(PAIR["draft"], threads=1))


@pytest.mark.parametrize("prune", ["uniform", "attention", "uv"])
def test_the_target_sees_a_share_of_the_video(target: Backend, prune: str) -> None:
    watched: Any = Watched(target)
    whole = answer_pruned(watched, PrunedView("none", 1.0), PROMPT, 12)
    tenth = answer_pruned(watched, PrunedView(prune, 0.1), PROMPT, 12)
    again = answer_pruned(watched, PrunedView(prune, 0.1), PROMPT, 12)
    everything, kept, _ = watched.kept
    assert everything is None
    assert kept is not None
    assert int(kept.sum()) == round(0.1 * whole.video_tokens)
    assert tenth.tokens == again.tokens
    assert 1 <= len(tenth.tokens) <= 12
    assert len(whole.target_passes_ms) == len(whole.tokens) - 1
    assert 0 < tenth.prefill_s <= tenth.first_token_s <= tenth.prefill_s + tenth.decode_s


def test_a_prompt_that_it_cannot_take(target: Backend) -> None:
    with pytest.raises(ModelError, match="PromptError"):
        answer_pruned(target, PrunedView("uv", 0.5), PROMPT, 16_384)


def test_no_engine_answers_like_that() -> None:
    with pytest.raises(ConfigError):
        Engine.create(method="pruned-uv")
