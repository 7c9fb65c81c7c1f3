"""Both backends on Qwen2.5-VL, against transformers' own forward pass and its `generate`."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pvlm_protocols.backend import Backend, EarlyStates, LoadOptions, Prompt, PromptError
from tests.backends.conftest import ANYWHERE, BACKENDS
from tests.support.checkpoints import random_frames

from .checkpoint import TOKEN_SIDE, qwen_checkpoint
from .reference import QwenReference

QUESTION = "What happens first in the video?"
ANSWER = [11, 7, 29, 300, 17, 5, 42, 600]
CHECKPOINTS: dict[str, dict[str, Any]] = {
    "saved": {},
    "released": {"released": True, "tied": False},
    "sharded": {"tied": False, "max_shard_size": "100KB"},
    "bfloat16": {"released": True, "dtype": torch.bfloat16},
    "float16": {"tied": False, "dtype": torch.float16},
}
LOAD = Callable[[str, str], Backend]
REFERENCES = Callable[[str], QwenReference]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    return cache(lambda name: qwen_checkpoint(tmp_path_factory.mktemp("qwen") / name, **CHECKPOINTS[name]))


@pytest.fixture(scope="module")
def references(folders: Callable[[str], Path]) -> REFERENCES:
    return cache(lambda name: QwenReference(folders(name)))


@pytest.fixture(scope="module")
def load(folders: Callable[[str], Path]) -> LOAD:
    return cache(lambda name, backend: BACKENDS[backend].load(LoadOptions(str(folders(name)), dtype="float32")))


def close(left: torch.Tensor, right: torch.Tensor) -> None:
    torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-4)


def frames_of(count: int, height: int, width: int, seed: int = 0) -> Any:
    """Frames of ``height`` by ``width`` tokens."""
    return random_frames(count, height * TOKEN_SIDE, width * TOKEN_SIDE, seed)


def check_logits(backend: Backend, reference: QwenReference, prompt: Prompt, second_per_grid: float) -> None:
    expected = reference.logits(QUESTION, prompt.frames, ANSWER, second_per_grid=second_per_grid)
    session = backend.open(prompt, 16)
    close(session.prefill(), expected[0])
    close(session.extend(ANSWER[:1]), expected[1:2])
    close(session.extend(ANSWER[1:6]), expected[2:7])
    session.truncate(3)
    close(session.extend(ANSWER[3:]), expected[4:])
    session.close()


@pytest.mark.parametrize("checkpoint", CHECKPOINTS)
def test_logits(load: LOAD, references: REFERENCES, backend_name: str, checkpoint: str) -> None:
    prompt = Prompt(QUESTION, frames_of(6, 5, 7))
    check_logits(load(checkpoint, backend_name), references(checkpoint), prompt, 1.0)


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
    prompt = Prompt(QUESTION, frames_of(frames, height, width), times)
    check_logits(load("saved", backend), references("saved"), prompt, 2 / timed)


@pytest.mark.parametrize("compact_positions", [False, True])
@pytest.mark.parametrize("checkpoint", ["saved", "released"])
def test_logits_with_pruning(
    load: LOAD, references: REFERENCES, backend_name: str, checkpoint: str, compact_positions: bool
) -> None:
    """Three-axis positions of the kept tokens, and the text's, are those of the unpruned prompt, or closed up."""
    prompt = Prompt(QUESTION, frames_of(6, 5, 7), tuple(20.0 * index for index in range(6)))
    session = load(checkpoint, backend_name).open(prompt, 16)
    keep = torch.rand(session.video_tokens, generator=torch.Generator().manual_seed(1)) < 0.2
    keep[len(keep) // 3 : 2 * len(keep) // 3] = False  # nothing of the second pair of frames: a gap at its time
    reference = references(checkpoint)
    original, compact = (
        reference.logits(QUESTION, prompt.frames, ANSWER, second_per_grid=40.0, keep=keep, compact_positions=closed)
        for closed in (False, True)
    )
    assert not torch.allclose(original, compact, atol=1e-2)
    expected = compact if compact_positions else original
    unpruned = reference.logits(QUESTION, prompt.frames, ANSWER, second_per_grid=40.0)
    assert not torch.allclose(expected, unpruned, atol=1e-2)
    close(session.prefill(keep, compact_positions=compact_positions), expected[0])
    close(session.extend(ANSWER[:2]), expected[1:3])
    session.truncate(1)
    close(session.extend(ANSWER[1:]), expected[2:])


def test_a_question_about_no_video(load: LOAD, references: REFERENCES, backend_name: str) -> None:
    check_logits(load("saved", backend_name), references("saved"), Prompt(QUESTION), 1.0)


def test_a_video_whose_times_exceed_the_positions_is_refused(load: LOAD, backend_name: str) -> None:
    """Of few tokens, but long: with two positions a second it reaches further than its tokens do."""
    prompt = Prompt(QUESTION, frames_of(6, 2, 2), tuple(400.0 * index for index in range(6)))
    numbers = (
        r"takes 32\d\d positions \(12 of its \d\d tokens are the video's\) and 16 are reserved.* 32\d\d exceed .*2048"
    )
    with pytest.raises(PromptError, match=numbers):
        load("saved", backend_name).open(prompt, 16)


def test_interleaved_sessions_of_different_prompts(load: LOAD, references: REFERENCES, backend_name: str) -> None:
    """transformers remembers on the model how far a prompt's positions run ahead of its rows; that must not leak."""
    reference, backend = references("saved"), load("saved", backend_name)
    prompts = [Prompt(QUESTION, frames_of(8, 2, 3)), Prompt(QUESTION, frames_of(2, 6, 6)), Prompt(QUESTION)]
    expected = [reference.logits(QUESTION, prompt.frames, ANSWER) for prompt in prompts]
    sessions = [backend.open(prompt, 16) for prompt in prompts]
    for session, rows in zip(sessions, expected, strict=True):
        close(session.prefill(), rows[0])
    for index, token in enumerate(ANSWER):
        for session, rows in zip(sessions, expected, strict=True):
            close(session.extend([token])[0], rows[index + 1])


@pytest.mark.parametrize("early_layer", [1, 2])
def test_early_states(load: LOAD, references: REFERENCES, backend_name: str, early_layer: int) -> None:
    reference = references("saved")
    frames = frames_of(5, 4, 5)
    found: list[EarlyStates] = []
    session = load("saved", backend_name).open(Prompt(QUESTION, frames), 4)
    session.prefill(early_layer=early_layer, on_early_layer=found.append, early_attention=True)
    states = reference.hidden_states(QUESTION, frames)
    ids = reference.inputs(QUESTION, frames)["input_ids"][0]
    video = ids == reference.model.config.video_token_id
    text = reference.tokenizer(QUESTION)["input_ids"]
    start = next(i for i in range(len(ids)) if ids[i : i + len(text)].tolist() == text)
    question = slice(start, start + len(text))
    assert found[0].frames == 3  # of five, two share their tokens
    close(found[0].video_first, states[0][video])
    close(found[0].question_first, states[0][question])
    close(found[0].video_last, states[early_layer][video])
    close(found[0].question_last, states[early_layer][question])
    attention = reference.attention(QUESTION, frames)[early_layer - 1]
    assert found[0].attention is not None
    expected = attention[:, question][..., video].mean(dim=(0, 1))
    torch.testing.assert_close(found[0].attention, expected, rtol=1e-4, atol=1e-7)


def test_greedy_text_is_that_of_generate(load: LOAD, references: REFERENCES, backend_name: str) -> None:
    backend, frames = load("released", backend_name), frames_of(4, 4, 6)
    end = backend.info.end_token_ids
    session = backend.open(Prompt(QUESTION, frames, (0.0, 0.25, 0.5, 0.75)), 24)
    answer = [int(session.prefill().argmax())]
    while answer[-1] not in end and len(answer) < 24:
        answer.append(int(session.extend(answer[-1:])[0].argmax()))
    assert tuple(answer) == references("released").generate(QUESTION, frames, 24, end, second_per_grid=0.5)


@pytest.mark.parametrize(("dtype", "nearness"), [("bfloat16", 0.05), ("float16", 0.01)])
@pytest.mark.parametrize("backend_name", ANYWHERE)
def test_half_precision_is_near(
    folders: Callable[[str], Path], references: REFERENCES, backend_name: str, dtype: str, nearness: float
) -> None:
    backend = BACKENDS[backend_name].load(LoadOptions(str(folders("saved")), dtype=dtype))
    prompt = Prompt(QUESTION, frames_of(4, 5, 6))
    session = backend.open(prompt, 16)
    expected = references("saved").logits(QUESTION, prompt.frames, ANSWER)
    found = torch.cat([session.prefill()[None].clone(), session.extend(ANSWER)])
    assert found.dtype == torch.float32
    assert (found - expected).norm() / expected.norm() < nearness
