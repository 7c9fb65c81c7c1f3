"""Both backends on Qwen2.5-VL, against transformers' own forward pass and its `generate`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pvlm_protocols.backend import Backend, Prompt, PromptError
from tests.backends.conftest import ANYWHERE, BACKENDS
from tests.backends.families.comparison import ANSWER, QUESTION, close
from tests.backends.families.qwen_family import (
    QwenFamily,
    check_answer,
    check_early,
    check_greedy_text,
    check_nearness,
    check_pruning,
)

from .checkpoint import TOKEN_SIDE, qwen_checkpoint
from .reference import QwenReference

FAMILY = QwenFamily(
    qwen_checkpoint,
    QwenReference,
    TOKEN_SIDE,
    {
        "saved": {},
        "released": {"released": True, "tied": False},
        "sharded": {"tied": False, "max_shard_size": "100KB"},
        "bfloat16": {"released": True, "dtype": torch.bfloat16},
        "float16": {"tied": False, "dtype": torch.float16},
    },
)
LOAD = Callable[[str, str], Backend]
REFERENCES = Callable[[str], QwenReference]


@pytest.mark.parametrize("checkpoint", FAMILY.checkpoints)
def test_logits(load: LOAD, references: REFERENCES, backend_name: str, checkpoint: str) -> None:
    check_answer(load(checkpoint, backend_name), references(checkpoint), Prompt(QUESTION, FAMILY.frames(6, 5, 7)))


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=12)
@given(
    frames=st.integers(1, 9),
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    fps=st.sampled_from([0.5, 1.0, 2.0, 3.0, 8.0, None]),
)
def test_logits_of_any_shape(
    load: LOAD, references: REFERENCES, backend: str, frames: int, height: int, width: int, fps: float | None
) -> None:
    """Frames that are smaller than a window of attention, as large, and larger; an odd one at the end; any rate."""
    if not 4 <= height * width <= 40:
        width = max(1, 12 // height)
        height = 12 // width
    times = () if fps is None else tuple(index / fps for index in range(frames))
    timed = 2.0 if fps is None or frames == 1 else fps
    prompt = Prompt(QUESTION, FAMILY.frames(frames, height, width), times)
    check_answer(load("saved", backend), references("saved"), prompt, 2 / timed)


@pytest.mark.parametrize("compact_positions", [False, True])
@pytest.mark.parametrize("checkpoint", ["saved", "released"])
def test_logits_with_pruning(
    load: LOAD, references: REFERENCES, backend_name: str, checkpoint: str, compact_positions: bool
) -> None:
    """Three-axis positions of the kept tokens, and the text's, are those of the unpruned prompt, or closed up."""
    prompt = Prompt(QUESTION, FAMILY.frames(6, 5, 7), tuple(20.0 * index for index in range(6)))
    check_pruning(load(checkpoint, backend_name), references(checkpoint), prompt, 0.2, compact_positions, 40.0)


def test_a_question_about_no_video(load: LOAD, references: REFERENCES, backend_name: str) -> None:
    check_answer(load("saved", backend_name), references("saved"), Prompt(QUESTION))


def test_a_video_whose_times_exceed_the_positions_is_refused(load: LOAD, backend_name: str) -> None:
    """Of few tokens, but long: with two positions a second it reaches further than its tokens do."""
    prompt = Prompt(QUESTION, FAMILY.frames(6, 2, 2), tuple(400.0 * index for index in range(6)))
    numbers = (
        r"takes 32\d\d positions \(12 of its \d\d tokens are the video's\) and 16 are reserved.* 32\d\d exceed .*2048"
    )
    with pytest.raises(PromptError, match=numbers):
        load("saved", backend_name).open(prompt, 16)


def test_interleaved_sessions_of_different_prompts(load: LOAD, references: REFERENCES, backend_name: str) -> None:
    """transformers remembers on the model how far a prompt's positions run ahead of its rows; that must not leak."""
    reference, backend = references("saved"), load("saved", backend_name)
    prompts = [Prompt(QUESTION, FAMILY.frames(8, 2, 3)), Prompt(QUESTION, FAMILY.frames(2, 6, 6)), Prompt(QUESTION)]
    expected = [reference.logits(QUESTION, prompt.frames, ANSWER) for prompt in prompts]
    sessions = [backend.open(prompt, 16) for prompt in prompts]
    for session, rows in zip(sessions, expected, strict=True):
        close(session.prefill(), rows[0])
    for index, token in enumerate(ANSWER):
        for session, rows in zip(sessions, expected, strict=True):
            close(session.extend([token])[0], rows[index + 1])


@pytest.mark.parametrize("early_layer", [1, 2])
def test_early_states(load: LOAD, references: REFERENCES, backend_name: str, early_layer: int) -> None:
    check_early(load("saved", backend_name), references("saved"), FAMILY.frames(5, 4, 5), early_layer)


def test_greedy_text_is_that_of_generate(load: LOAD, references: REFERENCES, backend_name: str) -> None:
    check_greedy_text(load("released", backend_name), references("released"), FAMILY.frames(4, 4, 6))


@pytest.mark.parametrize(("dtype", "nearness"), [("bfloat16", 0.05), ("float16", 0.01)])
@pytest.mark.parametrize("backend_name", ANYWHERE)
def test_half_precision_is_near(
    folders: Callable[[str], Path], references: REFERENCES, backend_name: str, dtype: str, nearness: float
) -> None:
    frames = FAMILY.frames(4, 5, 6)
    check_nearness(BACKENDS[backend_name], folders("saved"), references("saved"), frames, dtype, nearness)
