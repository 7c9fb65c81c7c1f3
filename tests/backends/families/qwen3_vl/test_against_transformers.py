"""The backends on Qwen3-VL, against transformers' own forward pass and its `generate`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pvlm_protocols.backend import Backend, Prompt
from tests.backends.conftest import ANYWHERE, BACKENDS
from tests.backends.families.comparison import QUESTION
from tests.backends.families.qwen_family import (
    QwenFamily,
    check_answer,
    check_early,
    check_greedy_text,
    check_nearness,
    check_pruning,
)

from .checkpoint import TOKEN_SIDE, qwen3_checkpoint
from .reference import Qwen3Reference

FAMILY = QwenFamily(
    qwen3_checkpoint,
    Qwen3Reference,
    TOKEN_SIDE,
    {
        "saved": {},
        "released": {"released": True, "tied": False},
        "32B, sharded": {"size": "32B", "max_shard_size": "100KB"},
    },
)
LOAD = Callable[[str, str], Backend]
REFERENCES = Callable[[str], Qwen3Reference]


@pytest.mark.parametrize("checkpoint", FAMILY.checkpoints)
def test_logits(load: LOAD, references: REFERENCES, backend_name: str, checkpoint: str) -> None:
    check_answer(load(checkpoint, backend_name), references(checkpoint), Prompt(QUESTION, FAMILY.frames(6, 3, 5)))


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=6)
@given(
    frames=st.integers(1, 7),
    height=st.integers(1, 6),
    width=st.integers(1, 6),
    second_per_grid=st.sampled_from([0.25, 1.0, 4.0, 246.0]),
)
def test_logits_of_any_shape(
    load: LOAD, references: REFERENCES, backend: str, frames: int, height: int, width: int, second_per_grid: float
) -> None:
    """Fewer patches than learned positions, and more; an odd frame at the end; times of one to three digits."""
    times = tuple(index * second_per_grid / 2 for index in range(frames))
    prompt = Prompt(QUESTION, FAMILY.frames(frames, height, width), times)
    check_answer(load("saved", backend), references("saved"), prompt, second_per_grid)


@pytest.mark.parametrize("compact_positions", [False, True])
def test_logits_with_pruning(load: LOAD, references: REFERENCES, backend_name: str, compact_positions: bool) -> None:
    """The text between the pairs of frames stays, and the features of each layer are those of the kept tokens."""
    prompt = Prompt(QUESTION, FAMILY.frames(6, 4, 5))
    check_pruning(load("released", backend_name), references("released"), prompt, 0.3, compact_positions)


def test_a_question_about_no_video(load: LOAD, references: REFERENCES, backend_name: str) -> None:
    check_answer(load("saved", backend_name), references("saved"), Prompt(QUESTION))


@pytest.mark.parametrize("early_layer", [1, 3])
def test_early_states(load: LOAD, references: REFERENCES, backend_name: str, early_layer: int) -> None:
    """Two layers get features of the tower; their states are those with the features."""
    check_early(load("saved", backend_name), references("saved"), FAMILY.frames(5, 2, 5), early_layer)


def test_greedy_text_is_that_of_generate(load: LOAD, references: REFERENCES, backend_name: str) -> None:
    check_greedy_text(load("released", backend_name), references("released"), FAMILY.frames(4, 2, 4))


@pytest.mark.parametrize("backend_name", ANYWHERE)
def test_half_precision_is_near(folders: Callable[[str], Path], references: REFERENCES, backend_name: str) -> None:
    frames = FAMILY.frames(4, 2, 6)
    check_nearness(BACKENDS[backend_name], folders("saved"), references("saved"), frames, "bfloat16", 0.06)
