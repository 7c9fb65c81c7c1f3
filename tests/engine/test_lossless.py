"""Every method, transport and backend gives, token for token, what transformers' own greedy decoding gives.

The reference is `LlavaOnevisionForConditionalGeneration.generate` with a neutral configuration, on the frames and the
prompt that our own reader and processor make. No clip is left out; the smallest gap between two logits that decided a
token is recorded, for "equal" can be expected only as far as rounding does not decide.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from pvlm import Engine
from pvlm_backends.families import load_processor
from pvlm_protocols.backend import Prompt
from tests.engine.conftest import Sample
from tests.support.native import NATIVE, NOT_NATIVE
from tests.support.pair import PAIR

pytestmark = pytest.mark.anyio
MAX_TOKENS = 250
A_FEW = 2
"""Clips for combinations that differ from a full one in a single thing."""


@dataclass(frozen=True)
class Reference:
    tokens: tuple[int, ...]
    smallest_gap: float
    """Between the best two logits, over the positions of the answer."""


@pytest.fixture(scope="module")
def references(samples: list[Sample]) -> list[Reference]:
    from transformers import GenerationConfig, LlavaOnevisionForConditionalGeneration

    folder = PAIR["target"]
    model: Any = LlavaOnevisionForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    processor = load_processor(folder)
    model.generation_config = GenerationConfig(
        do_sample=False,
        max_new_tokens=MAX_TOKENS,
        eos_token_id=list(processor.end_token_ids),
        pad_token_id=0,
        return_dict_in_generate=True,
        output_logits=True,
    )
    found = []
    for sample in samples:
        prompt = processor.prepare(Prompt(sample.question, processor.resize(sample.frames)))
        ids = torch.from_numpy(prompt.ids)[None]
        (video,) = prompt.visuals
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # transformers' own
            said = model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                pixel_values_videos=torch.from_numpy(video.values)[None],
            )
        best = torch.stack([logits[0].float().topk(2).values for logits in said.logits])
        tokens = tuple(said.sequences[0, ids.shape[1] :].tolist())
        found.append(Reference(tokens, float((best[:, 0] - best[:, 1]).min())))
    return found


def test_the_clips_are_worth_it(
    samples: list[Sample],
    references: list[Reference],
    record_property: Callable[[str, object], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """At least twelve, from short to long, with answers that are long enough for many windows and differ."""
    lengths = [len(reference.tokens) for reference in references]
    assert len(samples) >= 12
    assert min(len(sample.frames) for sample in samples) == 8
    assert max(len(sample.frames) for sample in samples) == 64
    assert sum(lengths) > 600
    assert max(lengths) > 100
    assert len({reference.tokens for reference in references}) > len(samples) // 2
    gap = min(reference.smallest_gap for reference in references)
    record_property("smallest_deciding_logit_gap", gap)
    with capsys.disabled():
        sys.stdout.write(
            f"\n{len(lengths)} clips, answers of {min(lengths)} to {max(lengths)} tokens, {sum(lengths)} in all; "
            f"smallest gap between two logits that decided a token: {gap:.2e}\n"
        )


OPENED: dict[str, dict[str, Any]] = {
    # With a window of its own choice the draft may rest for a whole answer where the machine is busy.
    "torch-ipc": {"backend": "torch", "transport": "ipc", "window": 4, "outcomes": 5},
    "torch-inproc": {"backend": "torch", "transport": "inproc", "threads": 1, "draft_threads": 1, "window": 4},
    "native-ipc": {"backend": "native", "transport": "ipc", "window": 4, "outcomes": 5},
    "hf-ipc": {"backend": "hf", "transport": "ipc", "window": 4, "outcomes": 5},
    "hf-inproc": {"backend": "hf", "transport": "inproc", "threads": 1, "draft_threads": 1, "window": 4},
    "torch-hf-inproc": {
        "backend": "torch",
        "draft_backend": "hf",
        "transport": "inproc",
        "threads": 1,
        "draft_threads": 1,
        "window": 4,  # a draft through transformers is no faster than a target that is not
    },
}


@pytest.fixture(scope="module", params=OPENED)
async def engine(request: pytest.FixtureRequest) -> AsyncIterator[tuple[str, Engine]]:
    if request.param == "native-ipc" and not NATIVE:
        pytest.skip(NOT_NATIVE)
    async with Engine.create(PAIR, **OPENED[request.param]) as opened:
        yield request.param, opened


FULL = {
    ("torch-ipc", "ar"),
    ("torch-ipc", "sd"),
    ("torch-ipc", "parallel"),
    ("native-ipc", "parallel"),
    ("hf-ipc", "parallel"),
}


@pytest.mark.parametrize("method", ["ar", "sd", "parallel"])
async def test_every_token_is_that_of_transformers(
    engine: tuple[str, Engine],
    method: str,
    samples: list[Sample],
    references: list[Reference],
    record_property: Callable[[str, object], None],
) -> None:
    name, opened = engine
    count = len(samples) if (name, method) in FULL else A_FEW
    gaps = []
    different = []
    for number, (sample, reference) in enumerate(zip(samples[:count], references, strict=False)):
        # The file itself where the method is plain; the same frames as an array elsewhere, which is faster.
        source = sample.path if method == "ar" else sample.frames
        answer = await opened.answer(
            source, sample.question, num_frames=len(sample.frames), max_tokens=MAX_TOKENS, method=method
        )
        gaps.append(reference.smallest_gap)
        if answer.tokens != reference.tokens:
            different.append(f"clip {number} (smallest gap {reference.smallest_gap:.2e})")
        assert answer.stats.draft_lost == ""
        assert answer.stats.method == method
        if method != "ar" and len(answer.tokens) > 30:
            assert answer.stats.accepted_tokens > 0, "the draft had no part in this"
    record_property("smallest_deciding_logit_gap", min(gaps))
    assert not different, f"{name}, {method}: other tokens than transformers for {', '.join(different)}"


async def test_windows_of_the_engine_s_own_choice(
    engine: tuple[str, Engine], samples: list[Sample], references: list[Reference]
) -> None:
    name, opened = engine
    count = len(samples) if name == "torch-ipc" else A_FEW
    accepted = 0
    for sample, reference in zip(samples[:count], references, strict=False):
        answer = await opened.answer(
            sample.frames, sample.question, num_frames=len(sample.frames), max_tokens=MAX_TOKENS, window="auto"
        )
        assert answer.tokens == reference.tokens
        assert answer.stats.draft_lost == ""
        accepted += answer.stats.accepted_tokens
    assert accepted > 0, "the draft had no part in any"
