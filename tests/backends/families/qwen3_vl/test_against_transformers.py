"""Both backends on Qwen3-VL, against transformers' own forward pass and its `generate`."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pvlm_protocols.backend import Backend, BackendError, EarlyStates, LoadOptions, Prompt
from tests.backends.conftest import ANYWHERE, BACKENDS
from tests.support.checkpoints import random_frames

from .checkpoint import TOKEN_SIDE, qwen3_checkpoint
from .reference import Qwen3Reference

QUESTION = "What happens first in the video?"
ANSWER = [11, 7, 29, 300, 17, 5, 42, 600]
CHECKPOINTS: dict[str, dict[str, Any]] = {
    "saved": {},
    "released": {"released": True, "tied": False},
    "sharded": {"tied": False, "max_shard_size": "100KB"},
}
LOAD = Callable[[str, str], Backend]
REFERENCES = Callable[[str], Qwen3Reference]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    return cache(lambda name: qwen3_checkpoint(tmp_path_factory.mktemp("qwen3") / name, **CHECKPOINTS[name]))


@pytest.fixture(scope="module")
def references(folders: Callable[[str], Path]) -> REFERENCES:
    return cache(lambda name: Qwen3Reference(folders(name)))


@pytest.fixture(scope="module")
def load(folders: Callable[[str], Path]) -> LOAD:
    return cache(lambda name, backend: BACKENDS[backend].load(LoadOptions(str(folders(name)), dtype="float32")))


@pytest.fixture(params=ANYWHERE)
def backend_name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def close(left: torch.Tensor, right: torch.Tensor) -> None:
    torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-4)


def frames_of(count: int, height: int, width: int) -> Any:
    """Frames of ``height`` by ``width`` tokens."""
    return random_frames(count, height * TOKEN_SIDE, width * TOKEN_SIDE)


def check_logits(backend: Backend, reference: Qwen3Reference, prompt: Prompt, second_per_grid: float = 1.0) -> None:
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
    check_logits(load(checkpoint, backend_name), references(checkpoint), Prompt(QUESTION, frames_of(6, 3, 5)))


@pytest.mark.parametrize("backend", ANYWHERE)
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
    prompt = Prompt(QUESTION, frames_of(frames, height, width), times)
    check_logits(load("saved", backend), references("saved"), prompt, second_per_grid)


@pytest.mark.parametrize("compact_positions", [False, True])
def test_logits_with_pruning(load: LOAD, references: REFERENCES, backend_name: str, compact_positions: bool) -> None:
    """The text between the pairs of frames stays, and the features of each layer are those of the kept tokens."""
    prompt = Prompt(QUESTION, frames_of(6, 4, 5))
    session = load("released", backend_name).open(prompt, 16)
    keep = torch.rand(session.video_tokens, generator=torch.Generator().manual_seed(1)) < 0.3
    keep[len(keep) // 3 : 2 * len(keep) // 3] = False  # nothing of the second pair of frames
    reference = references("released")
    original, compact = (
        reference.logits(QUESTION, prompt.frames, ANSWER, keep=keep, compact_positions=closed)
        for closed in (False, True)
    )
    assert not torch.allclose(original, compact, atol=1e-2)
    expected = compact if compact_positions else original
    assert not torch.allclose(expected, reference.logits(QUESTION, prompt.frames, ANSWER), atol=1e-2)
    close(session.prefill(keep, compact_positions=compact_positions), expected[0])
    close(session.extend(ANSWER[:2]), expected[1:3])
    session.truncate(1)
    close(session.extend(ANSWER[1:]), expected[2:])


def test_a_question_about_no_video(load: LOAD, references: REFERENCES, backend_name: str) -> None:
    check_logits(load("saved", backend_name), references("saved"), Prompt(QUESTION))


@pytest.mark.parametrize("early_layer", [1, 3])
def test_early_states(load: LOAD, references: REFERENCES, backend_name: str, early_layer: int) -> None:
    """Two layers get features of the tower; their states are those with the features."""
    reference = references("saved")
    frames = frames_of(5, 2, 5)
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
    backend, frames = load("released", backend_name), frames_of(4, 2, 4)
    end = backend.info.end_token_ids
    session = backend.open(Prompt(QUESTION, frames, (0.0, 0.25, 0.5, 0.75)), 24)
    answer = [int(session.prefill().argmax())]
    while answer[-1] not in end and len(answer) < 24:
        answer.append(int(session.extend(answer[-1:])[0].argmax()))
    assert tuple(answer) == references("released").generate(QUESTION, frames, 24, end, second_per_grid=0.5)


def test_half_precision_is_near(folders: Callable[[str], Path], references: REFERENCES, backend_name: str) -> None:
    backend = BACKENDS[backend_name].load(LoadOptions(str(folders("saved")), dtype="bfloat16"))
    prompt = Prompt(QUESTION, frames_of(4, 2, 6))
    session = backend.open(prompt, 16)
    expected = references("saved").logits(QUESTION, prompt.frames, ANSWER)
    found = torch.cat([session.prefill()[None].clone(), session.extend(ANSWER)])
    assert found.dtype == torch.float32
    assert (found - expected).norm() / expected.norm() < 0.06


@pytest.mark.skipif("native" not in BACKENDS, reason="needs the compiled passes")
def test_the_compiled_passes_refuse_it(folders: Callable[[str], Path]) -> None:
    with pytest.raises(BackendError, match="normalise queries and keys; take the backend 'torch'"):
        BACKENDS["native"].load(LoadOptions(str(folders("saved"))))
