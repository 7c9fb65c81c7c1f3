"""The backends on LLaVA-OneVision, compared with transformers' own forward pass and its `generate`."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch

from pvlm_protocols.backend import Backend, EarlyStates, LoadOptions, Prompt, Session
from tests.backends.conftest import ANYWHERE, BACKENDS
from tests.backends.families.comparison import (
    ANSWER,
    QUESTION,
    check_early_attention,
    check_early_states,
    check_logits,
    check_pruned_logits,
    close,
    distance,
    greedy_answer,
    rows_of,
)
from tests.backends.families.llava_onevision.checkpoint import RANDOM_CHECKPOINTS
from tests.support.checkpoints import random_frames

from .reference import LlavaReference

FIND = Callable[[str], Path]
LOAD = Callable[[str, str], Backend]


@pytest.fixture(scope="module")
def references(checkpoints: FIND) -> Callable[[str], LlavaReference]:
    return cache(lambda name: LlavaReference(checkpoints(name)))


def open_session(backend: Backend, reference: LlavaReference, capacity: int = 32) -> tuple[Session, Prompt]:
    side = reference.model.config.vision_config.image_size
    prompt = Prompt(QUESTION, random_frames(3, side, side))
    return backend.open(prompt, capacity), prompt


@pytest.mark.parametrize("checkpoint", ["target", "draft", *RANDOM_CHECKPOINTS])
def test_logits(
    load_backend: LOAD, references: Callable[[str], LlavaReference], backend_name: str, checkpoint: str
) -> None:
    reference = references(checkpoint)
    session, prompt = open_session(load_backend(backend_name, checkpoint), reference)
    check_logits(session, reference.logits(QUESTION, prompt.frames, ANSWER))


@pytest.mark.parametrize("compact_positions", [False, True])
@pytest.mark.parametrize("checkpoint", ["target", "draft", "untied"])
def test_logits_with_pruning(
    load_backend: LOAD,
    references: Callable[[str], LlavaReference],
    backend_name: str,
    checkpoint: str,
    compact_positions: bool,
) -> None:
    reference = references(checkpoint)
    session, prompt = open_session(load_backend(backend_name, checkpoint), reference)
    keep = torch.rand(session.video_tokens, generator=torch.Generator().manual_seed(1)) < 0.2
    expected = reference.logits(QUESTION, prompt.frames, ANSWER, keep, compact_positions)
    unpruned = reference.logits(QUESTION, prompt.frames, ANSWER)
    check_pruned_logits(session, keep, compact_positions, expected, unpruned)


def test_pruning_everything(load_backend: LOAD, references: Callable[[str], LlavaReference], backend_name: str) -> None:
    reference = references("tied")
    session, prompt = open_session(load_backend(backend_name, "tied"), reference)
    keep = torch.zeros(session.video_tokens, dtype=torch.bool)
    close(session.prefill(keep), reference.logits(QUESTION, prompt.frames, [], keep)[0])


def test_a_question_about_no_video(
    load_backend: LOAD, references: Callable[[str], LlavaReference], backend_name: str
) -> None:
    session = load_backend(backend_name, "target").open(Prompt(QUESTION), 16)
    expected = references("target").logits(QUESTION, None, ANSWER)
    close(session.prefill(), expected[0])
    close(session.extend(ANSWER), expected[1:])


def video_and_question(reference: LlavaReference, frames: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of the prunable video tokens, and of the question's text, in the prompt."""
    ids = torch.tensor(reference.ids(QUESTION, frames))
    question = rows_of(ids, reference.tokenizer(QUESTION)["input_ids"])
    return (ids == reference.model.config.video_token_id).nonzero()[:-1, 0], question


@pytest.mark.parametrize("early_layer", [1, 2])
@pytest.mark.parametrize("checkpoint", ["target", "tied"])
def test_early_states(
    load_backend: LOAD,
    references: Callable[[str], LlavaReference],
    backend_name: str,
    checkpoint: str,
    early_layer: int,
) -> None:
    reference = references(checkpoint)
    session, prompt = open_session(load_backend(backend_name, checkpoint), reference)
    assert prompt.frames is not None
    found: list[EarlyStates] = []
    session.prefill(early_layer=early_layer, on_early_layer=found.append)
    states = reference.hidden_states(QUESTION, prompt.frames)
    video, question = video_and_question(reference, len(prompt.frames))
    assert found[0].frames == len(prompt.frames)
    check_early_states(found[0], early_layer, states, video, question)


@pytest.mark.parametrize("early_layer", [1, 3])
@pytest.mark.parametrize("checkpoint", ["target", "tied", "ungrouped"])
def test_early_attention(
    load_backend: LOAD,
    references: Callable[[str], LlavaReference],
    backend_name: str,
    checkpoint: str,
    early_layer: int,
) -> None:
    reference = references(checkpoint)
    session, prompt = open_session(load_backend(backend_name, checkpoint), reference)
    assert prompt.frames is not None
    found: list[EarlyStates] = []
    session.prefill(early_layer=early_layer, on_early_layer=found.append, early_attention=True)
    attention = reference.attention(QUESTION, prompt.frames)[early_layer - 1]
    video, question = video_and_question(reference, len(prompt.frames))
    expected = check_early_attention(found[0], attention, video, question)
    assert float(expected.sum()) < 0.99  # what the question gives to text counts in the softmax


@pytest.mark.parametrize("checkpoint", ["target", "draft"])
def test_greedy_text_is_that_of_generate(
    load_backend: LOAD, references: Callable[[str], LlavaReference], backend_name: str, checkpoint: str
) -> None:
    reference, backend = references(checkpoint), load_backend(backend_name, checkpoint)
    session, prompt = open_session(backend, reference)
    assert prompt.frames is not None
    end = backend.info.end_token_ids
    assert greedy_answer(session, end) == reference.generate(QUESTION, prompt.frames, 24, end)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("backend_name", ANYWHERE)
def test_half_precision_is_near(
    load_backend: LOAD, checkpoints: FIND, references: Callable[[str], LlavaReference], backend_name: str, dtype: str
) -> None:
    backend = BACKENDS[backend_name].load(LoadOptions(str(checkpoints("target")), dtype=dtype))
    assert backend.info.dtype == dtype
    session, prompt = open_session(backend, references("target"))
    expected = references("target").logits(QUESTION, prompt.frames, ANSWER)
    assert distance(session, expected) < (0.05 if dtype == "bfloat16" else 0.01)
