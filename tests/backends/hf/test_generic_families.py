"""Families that transformers has and pvlm has not, with their own processors of videos: see `make generic`."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import anyio
import pytest
from PIL import Image

from pvlm import Engine
from pvlm_backends.hf import HuggingFaceBackend
from shapes.clips import read_clip, write_clip
from tests.backends.hf.generic_checkpoints import FAMILIES
from tests.backends.hf.generic_comparison import (
    INPROC,
    MAX_TOKENS,
    QUESTION,
    check_methods,
    conversation,
    generated,
    inputs,
)
from tests.support.checkpoints import random_frames

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.generic,
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),  # of transformers' own arrays
    pytest.mark.skipif(
        find_spec("torchvision") is None,
        reason="transformers' video processors need torchvision, which no torch of constraints.txt has: `make generic`",
    ),
    pytest.mark.skipif(find_spec("num2words") is None, reason="SmolVLM's processor needs num2words: `make generic`"),
]
VIDEO_FAMILIES = [name for name, family in FAMILIES.items() if family.videos is not None]
FRAMES = random_frames(6, 48, 64)
GENERIC = Callable[..., Path]


@pytest.mark.parametrize("name", VIDEO_FAMILIES)
async def test_every_method_says_what_generate_says(generic: GENERIC, tmp_path: Path, name: str) -> None:
    """About a file, of which one frame a second is taken: some families write the frames' times."""
    clip = tmp_path / "clip.mp4"
    write_clip(clip, FRAMES.repeat(4, axis=0))  # four frames a second
    expected = generated(generic(name), inputs(generic(name), conversation(read_clip(clip)[::4]), 1.0))
    answer = await check_methods(generic(name), generic(name, 2), expected, video=clip, question=QUESTION, fps=1.0)
    assert answer.stats.frame_indices == (0, 4, 8, 12, 16, 20)


@pytest.mark.parametrize("name", VIDEO_FAMILIES)
async def test_a_conversation_about_two_videos_and_one_about_an_image(generic: GENERIC, name: str) -> None:
    two = conversation(FRAMES[:2], FRAMES[2:4], question="Which one?")
    picture = conversation(Image.fromarray(FRAMES[0]), question="What is it?")
    rate = HuggingFaceBackend.processor(str(generic(name))).frame_defaults.fps or 2.0  # of frames without times
    for messages, fps in ((two, (rate, rate)), (picture, ())):
        expected = generated(generic(name), inputs(generic(name), messages, *fps))
        await check_methods(generic(name), generic(name, 2), expected, messages=messages)


async def test_two_answers_at_once_do_not_disturb_each_other(generic: GENERIC) -> None:
    """transformers keeps a prompt's ``rope_deltas`` on the model."""
    videos = [FRAMES[:2], FRAMES, FRAMES[:4, :32]]
    async with Engine.create(target=str(generic("qwen2_vl")), draft=str(generic("qwen2_vl", 2)), **INPROC) as engine:
        alone = [await engine.answer(video, QUESTION, max_tokens=MAX_TOKENS, method="ar") for video in videos]
        together = {}

        async def answer(number: int) -> None:
            together[number] = await engine.answer(videos[number], QUESTION, max_tokens=MAX_TOKENS)

        async with anyio.create_task_group() as tasks:
            for number in range(len(videos)):
                tasks.start_soon(answer, number)
    assert [together[number].tokens for number in range(len(videos))] == [one.tokens for one in alone]
    assert len({one.tokens for one in alone}) == len(videos)
