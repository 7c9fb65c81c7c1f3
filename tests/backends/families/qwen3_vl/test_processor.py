"""Frames, prompts and positions of Qwen3-VL, against transformers where it has a say."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.models.qwen3_vl.video_processing_qwen3_vl import smart_resize

from pvlm_backends.families import load_processor
from pvlm_backends.families.qwen3_vl import Qwen3VLProcessor
from pvlm_protocols.backend import CheckpointError, FrameDefaults, Prompt, PromptError
from tests.backends.families.comparison import QUESTION
from tests.backends.families.qwen_family import changes_of, check_prompt_ids
from tests.support.checkpoints import random_frames

from .checkpoint import TOKEN_SIDE, qwen3_checkpoint
from .reference import Qwen3Reference

SIDES = st.integers(1, 3000)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return qwen3_checkpoint(tmp_path_factory.mktemp("qwen3") / "released", released=True)


@pytest.fixture(scope="module")
def processor(checkpoint: Path) -> Qwen3VLProcessor:
    found = load_processor(str(checkpoint))
    assert isinstance(found, Qwen3VLProcessor)
    return found


@pytest.fixture(scope="module")
def reference(checkpoint: Path) -> Qwen3Reference:
    return Qwen3Reference(checkpoint)


@pytest.fixture
def changed(checkpoint: Path, tmp_path: Path) -> Callable[..., Qwen3VLProcessor]:
    return changes_of(Qwen3VLProcessor, checkpoint, tmp_path)


@pytest.mark.parametrize(("count", "height", "width"), [(1, 2, 3), (2, 1, 1), (5, 4, 2)])
def test_patches_are_those_of_transformers(
    processor: Qwen3VLProcessor, reference: Qwen3Reference, count: int, height: int, width: int
) -> None:
    frames = random_frames(count, height * TOKEN_SIDE, width * TOKEN_SIDE)
    patches = processor.patches(frames)
    expected, grid = reference.pixels(frames)
    assert (np.array(processor.video_grid(frames)) * (1, 2, 2)).tolist() == grid[0].tolist()
    np.testing.assert_array_equal(patches.reshape(expected.shape), expected.numpy())


@settings(max_examples=100)
@given(st.integers(1, 60), SIDES, SIDES)
def test_sizes_are_those_of_transformers(processor: Qwen3VLProcessor, frames: int, height: int, width: int) -> None:
    bounds = {"factor": TOKEN_SIDE, "min_pixels": 8 * TOKEN_SIDE**2, "max_pixels": 400 * TOKEN_SIDE**2}
    try:
        expected = smart_resize(max(frames, 2), height, width, **bounds)
    except ValueError:
        with pytest.raises(PromptError, match=f"{width}x{height} .*200 times"):
            processor.frame_size(frames, height, width)
    else:
        assert processor.frame_size(frames, height, width) == expected


def test_a_frame_s_own_limit(changed: Callable[..., Qwen3VLProcessor]) -> None:
    """By default a few large frames may take the whole video's share."""
    name = "video_preprocessor_config.json"
    assert changed(name).frame_size(4, 1000, 1000) == (10 * TOKEN_SIDE, 10 * TOKEN_SIDE)
    capped = changed(name, cap_pixels_per_frame=True, max_video_tokens=25)
    assert capped.frame_size(4, 1000, 1000) == (5 * TOKEN_SIDE, 5 * TOKEN_SIDE)
    assert capped.frame_size(60, 1000, 1000) == (2 * TOKEN_SIDE, 2 * TOKEN_SIDE)


@pytest.mark.parametrize("question", ["What happens?", "two\nlines, and ünïcödé: 視頻 🎬"])
def test_prompt_ids_are_those_of_transformers(
    processor: Qwen3VLProcessor, reference: Qwen3Reference, question: str
) -> None:
    check_prompt_ids(processor, reference, question)


@settings(max_examples=12)
@given(st.integers(1, 9), st.integers(1, 5), st.integers(1, 5), st.sampled_from([0.3, 1.0, 2.0, 24.0, None]))
def test_positions_and_times_are_those_of_transformers(
    processor: Qwen3VLProcessor, reference: Qwen3Reference, frames: int, height: int, width: int, fps: float | None
) -> None:
    video = np.zeros((frames, height * TOKEN_SIDE, width * TOKEN_SIDE, 3), np.uint8)
    times = () if fps is None else tuple(index / fps for index in range(frames))
    prepared = processor.prepare(Prompt(QUESTION, video, times))
    inputs = reference.inputs(QUESTION, video, 2 / (fps or 2.0))
    assert prepared.ids.tolist() == inputs["input_ids"][0].tolist()
    expected = reference.positions(inputs)
    np.testing.assert_array_equal(prepared.positions, expected.numpy())
    assert prepared.next_position == int(expected.max()) + 1


def test_a_time_does_not_hang_on_the_rounding_of_a_float32(processor: Qwen3VLProcessor) -> None:
    """At 30 frames a second, the mean of frames 1 and 2 is 0.05 s, which is written as 0.1."""
    video = np.zeros((2, TOKEN_SIDE, TOKEN_SIDE, 3), np.uint8)
    exact = processor.prepare(Prompt(QUESTION, video, (1 / 30, 2 / 30)))
    rounded = processor.prepare(Prompt(QUESTION, video, tuple(np.float32([1 / 30, 2 / 30]).tolist())))
    assert exact.ids.tolist() == rounded.ids.tolist()


def test_frame_defaults(processor: Qwen3VLProcessor, changed: Callable[..., Qwen3VLProcessor]) -> None:
    assert processor.frame_defaults == FrameDefaults(768, fps=2, min_frames=4, multiple=2)
    found = changed("video_preprocessor_config.json", fps=1, min_frames=6, max_frames=64)
    assert found.frame_defaults == FrameDefaults(64, fps=1, min_frames=6, multiple=2)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("video_preprocessor_config.json", {"patch_size": 14}, "patch_size=14.*16"),
        ("video_preprocessor_config.json", {"do_resize": False}, "do_resize"),
        ("config.json", {"vision_start_token_id": None}, "vision_start_token_id"),
        ("config.json", {"model_type": "qwen3_vl_moe"}, "'qwen3_vl_moe'.*supported: .*'qwen3_vl'"),
    ],
)
def test_what_is_not_supported(
    changed: Callable[..., Qwen3VLProcessor], name: str, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        changed(name, **changes)


def test_frames_that_do_not_fit_are_refused(processor: Qwen3VLProcessor) -> None:
    with pytest.raises(PromptError, match="multiples of 32"):
        processor.prepare(Prompt("What?", random_frames(2, 30, 32)))
    with pytest.raises(PromptError, match="2 frames, but 3 timestamps"):
        processor.prepare(Prompt("What?", random_frames(2, 64, 64), (0.0, 1.0, 2.0)))
