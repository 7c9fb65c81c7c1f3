"""transformers' own loops, on videos whose positions have several axes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from pvlm_backends.hf import HuggingFaceBackend
from pvlm_protocols.backend import BackendError, LoadOptions, Prompt
from tests.backends.families.qwen2_5_vl.checkpoint import qwen_checkpoint
from tests.backends.families.qwen3_vl.checkpoint import qwen3_checkpoint
from tests.support.checkpoints import random_frames

QUESTION = "What happens?"
MAX_TOKENS = 16


@pytest.mark.parametrize(("make", "side"), [(qwen_checkpoint, 28), (qwen3_checkpoint, 32)])
def test_its_answer_is_that_of_a_session(tmp_path: Path, make: Callable[[Path], Path], side: int) -> None:
    """The model is its own assistant: with the same video at the same positions, it is always right."""
    options = LoadOptions(str(make(tmp_path / "checkpoint")))
    backend, assistant = HuggingFaceBackend.load(options), HuggingFaceBackend.load(options)
    prompt = Prompt(QUESTION, random_frames(4, 2 * side, 3 * side))
    session = backend.open(prompt, MAX_TOKENS)
    answer = [int(session.prefill().argmax())]
    while answer[-1] not in backend.info.end_token_ids and len(answer) < MAX_TOKENS:
        answer.append(int(session.extend(answer[-1:])[0].argmax()))
    assert backend.generate(prompt, MAX_TOKENS).tokens == tuple(answer)
    assert backend.generate(prompt, MAX_TOKENS, lookup_tokens=3).tokens == tuple(answer)
    assisted = backend.generate(prompt, MAX_TOKENS, assistant=assistant)
    assert assisted.tokens == tuple(answer)
    assert assisted.accepted_tokens > 0
    assert assisted.rejected_tokens == 0


def test_a_video_that_reaches_beyond_the_text_is_refused(tmp_path: Path) -> None:
    """`generate` would number its tokens after the last token, and answer something else."""
    backend = HuggingFaceBackend.load(LoadOptions(str(qwen_checkpoint(tmp_path / "checkpoint"))))
    frames = random_frames(4, 56, 56)
    with pytest.raises(BackendError, match=r"generate cannot be compared .*'qwen2_5_vl'.* to position \d{3}"):
        backend.generate(Prompt(QUESTION, frames, (0.0, 100.0, 200.0, 300.0)), 4)
    assert len(backend.generate(Prompt(QUESTION), 4).tokens) <= 4
