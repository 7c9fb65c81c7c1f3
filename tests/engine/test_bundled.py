"""Answers of the small pair: about videos in any form, and seeded ones whatever the draft does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pvlm import Engine, OptionError, PromptError, VideoError
from tests.engine.conftest import FRAMES, Sample
from tests.support.pair import PAIR

pytestmark = pytest.mark.anyio

FORMS: dict[str, Callable[[Sample], Any]] = {
    "path": lambda sample: sample.path,
    "path as text": lambda sample: str(sample.path),
    "bytes": lambda sample: sample.path.read_bytes(),
    "array": lambda sample: sample.frames,
    "array that is not contiguous": lambda sample: np.ascontiguousarray(sample.frames[:, :, ::-1])[:, :, ::-1],
    "tensor": lambda sample: torch.from_numpy(sample.frames.copy()),
    "images": lambda sample: [Image.fromarray(frame) for frame in sample.frames],
}


@pytest.mark.parametrize("form", FORMS)
async def test_equal_frames_give_equal_answers_in_every_form(small: Engine, samples: list[Sample], form: str) -> None:
    sample = samples[1]
    frames = len(sample.frames)
    expected = await small.answer(sample.frames, "Describe the video.", max_tokens=40, method="ar")
    answer = await small.answer(FORMS[form](sample), "Describe the video.", max_tokens=40, num_frames=frames)
    assert answer.tokens == expected.tokens
    assert answer.text == expected.text
    assert answer.stats.source_frames == frames
    assert answer.stats.frame_indices == tuple(range(frames))
    assert answer.stats.video_tokens == expected.stats.video_tokens > 0


async def test_num_frames_chooses_frames(small: Engine, samples: list[Sample]) -> None:
    sample = samples[3]
    whole = await small.answer(sample.frames, "Describe the video.", max_tokens=8)
    few = await small.answer(sample.frames, "Describe the video.", max_tokens=8, num_frames=4)
    assert few.stats.video_tokens == whole.stats.video_tokens * 4 // len(sample.frames)
    assert len(few.stats.frame_indices) == 4
    same = await small.answer(sample.frames[list(few.stats.frame_indices)], "Describe the video.", max_tokens=8)
    assert same.tokens == few.tokens


async def test_what_is_no_video_is_told_before_anything_is_asked(small: Engine, tmp_path: Any) -> None:
    (tmp_path / "text.mp4").write_text("no video")
    with pytest.raises(VideoError, match=r"text\.mp4"):
        await small.answer(tmp_path / "text.mp4", "?")
    with pytest.raises(VideoError, match=r"nothing\.mp4"):
        await small.answer(tmp_path / "nothing.mp4", "?")
    with pytest.raises((OptionError, VideoError)):
        await small.answer(17, "?")  # type: ignore[arg-type]
    assert (await small.answer(FRAMES, "?", max_tokens=2)).tokens


async def test_a_prompt_that_does_not_fit_is_a_prompt_error(small: Engine) -> None:
    with pytest.raises(PromptError, match="16384"):
        await small.answer(FRAMES, "?", max_tokens=20_000)
    with pytest.raises(PromptError, match="special token"):
        await small.answer(FRAMES, "What is <|im_end|>?", max_tokens=2)
    assert (await small.answer(FRAMES, "?", max_tokens=2)).tokens


async def test_a_stop_string_in_a_real_text(small: Engine, samples: list[Sample]) -> None:
    sample = samples[2]
    whole = await small.answer(sample.frames, "Describe the video.", max_tokens=60)
    stop = whole.text[len(whole.text) // 2 :][:6]
    cut = await small.answer(sample.frames, "Describe the video.", max_tokens=60, stop=[stop])
    assert cut.text == whole.text[: whole.text.index(stop)]
    assert whole.tokens[: len(cut.tokens)] == cut.tokens
    assert cut.finish_reason == "stop"


SEEDED: dict[str, dict[str, Any]] = {
    "parallel": {"method": "parallel"},
    "sd": {"method": "sd"},
    "windows of 1": {"method": "parallel", "window": 1},
    "windows of 9": {"method": "parallel", "window": 9},
    "windows of 5, 6 outcomes": {"method": "parallel", "window": 5, "outcomes": 6},
    "sd, windows of 5": {"method": "sd", "window": 5},
    "nothing pruned": {"method": "parallel", "prune_ratio": 0.0},
    "most pruned": {"method": "parallel", "prune_ratio": 0.9},
    "pruned by attention": {"method": "parallel", "prune": "specvlm", "prune_ratio": 0.7},
    "pruned by novelty": {"method": "parallel", "prune": "novelty", "prune_ratio": 0.7},
    "pruned at random": {"method": "parallel", "prune": "random", "prune_ratio": 0.7},
}


@pytest.mark.parametrize("how", SEEDED)
async def test_a_seeded_answer_is_a_function_of_its_seed(small: Engine, samples: list[Sample], how: str) -> None:
    """Not of the method, the windows, or what the draft sees."""
    sampling: dict[str, Any] = {"temperature": 1.0, "top_p": 0.95, "seed": 17, "max_tokens": 50, "ignore_eos": True}
    sample = samples[2]
    alone = await small.answer(sample.frames, sample.question, method="ar", **sampling)
    answer = await small.answer(sample.frames, sample.question, **sampling, **SEEDED[how])
    assert answer.tokens == alone.tokens
    assert answer.stats.coupling == "gumbel"


@pytest.mark.parametrize("transport", ["ipc"])
async def test_a_seeded_answer_does_not_depend_on_the_transport(
    small: Engine, samples: list[Sample], transport: str
) -> None:
    sampling: dict[str, Any] = {"temperature": 0.8, "seed": 2**63 - 1, "max_tokens": 40, "ignore_eos": True}
    sample = samples[0]
    here = await small.answer(sample.frames, sample.question, method="ar", **sampling)
    there = await Engine.create(PAIR, transport=transport).answer(sample.frames, sample.question, **sampling)
    assert there.tokens == here.tokens


async def test_unseeded_answers_differ(small: Engine, samples: list[Sample]) -> None:
    sampling: dict[str, Any] = {"temperature": 2.0, "max_tokens": 40, "ignore_eos": True}
    answers = [await small.answer(samples[0].frames, samples[0].question, **sampling) for _ in range(3)]
    assert len({answer.tokens for answer in answers}) == 3
    assert {answer.stats.coupling for answer in answers} == {"speculative"}
    assert answers[0].stats.seed is None


async def test_four_answers_at_once_about_different_videos(small: Engine, samples: list[Sample]) -> None:
    import asyncio

    alone = [await small.answer(sample.frames, sample.question, max_tokens=30) for sample in samples[:4]]
    together = await asyncio.gather(
        *(small.answer(sample.frames, sample.question, max_tokens=30) for sample in samples[:4])
    )
    assert [answer.tokens for answer in together] == [answer.tokens for answer in alone]
