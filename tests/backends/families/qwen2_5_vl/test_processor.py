"""Frames, prompts and positions of Qwen2.5-VL, against transformers where it has a say."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

from pvlm_backends.families import load_processor
from pvlm_backends.families.qwen2_5_vl import Qwen25VLProcessor
from pvlm_protocols.backend import CheckpointError, FrameDefaults, Prompt, PromptError
from tests.backends.families.comparison import QUESTION
from tests.backends.families.qwen_family import changes_of, check_prompt_ids
from tests.support.checkpoints import random_frames

from .checkpoint import TOKEN_SIDE, qwen_checkpoint
from .reference import QwenReference

SIDES = st.integers(1, 3000)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return qwen_checkpoint(tmp_path_factory.mktemp("qwen") / "released", released=True)


@pytest.fixture(scope="module")
def processor(checkpoint: Path) -> Qwen25VLProcessor:
    found = load_processor(str(checkpoint))
    assert isinstance(found, Qwen25VLProcessor)
    return found


@pytest.fixture(scope="module")
def reference(checkpoint: Path) -> QwenReference:
    return QwenReference(checkpoint)


@pytest.fixture
def changed(checkpoint: Path, tmp_path: Path) -> Callable[..., Qwen25VLProcessor]:
    return changes_of(Qwen25VLProcessor, checkpoint, tmp_path)


@pytest.mark.parametrize("size", [(140, 196), (37, 53), (480, 641), (113, 111), (3, 300), (60, 1080)])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_patches_are_those_of_transformers(
    processor: Qwen25VLProcessor, reference: QwenReference, size: tuple[int, int], count: int
) -> None:
    frames = random_frames(count, *size)
    taken = processor.resize(frames)
    patches = processor.patches(taken)
    expected, grid = reference.pixels(frames)
    time, height, width = grid[0].tolist()
    assert processor.video_grid(taken) == (time, height // 2, width // 2)
    assert patches.shape == (time, height // 2, width // 2, 4, 3 * 2 * 14 * 14)
    np.testing.assert_array_equal(patches.reshape(expected.shape), expected.numpy())


@settings(max_examples=150)
@given(SIDES, SIDES)
def test_sizes_are_those_of_transformers(processor: Qwen25VLProcessor, height: int, width: int) -> None:
    bounds = {"factor": TOKEN_SIDE, "min_pixels": 4 * TOKEN_SIDE**2, "max_pixels": 40 * TOKEN_SIDE**2}
    if max(height, width) > 200 * min(height, width):
        with pytest.raises(PromptError, match=f"{width}x{height}.*200"):
            processor.frame_size(1, height, width)
    else:
        found = processor.frame_size(1, height, width)
        assert found == smart_resize(height, width, **bounds)


@given(st.integers(1, 768), st.integers(100, 3000), st.integers(100, 3000))
def test_a_whole_video_keeps_within_its_tokens(frames: int, height: int, width: int) -> None:
    """The released bounds for a frame, 3,136 to 12,845,056 pixels, would allow 6 million tokens."""
    processor = object.__new__(Qwen25VLProcessor)
    processor.patch_size, processor.merge_size, processor.temporal_patch_size = 14, 2, 2
    processor._fewest_pixels, processor._most_pixels, processor._video_tokens = 3136, 12845056, 128_000
    sides = processor.frame_size(frames, height, width)
    assert sides[0] % 28 == sides[1] % 28 == 0
    tokens = frames / 2 * sides[0] * sides[1] / 28**2
    assert tokens <= 0.9 * 128_000
    processor._video_tokens = None
    assert processor.frame_size(frames, height, width) == smart_resize(height, width, 28, 3136, 12845056)


def test_resizing_twice_changes_nothing(processor: Qwen25VLProcessor) -> None:
    for size in ((90, 400), (28, 28), (500, 30)):
        once = processor.resize(random_frames(3, *size))
        assert processor.resize(once) is once


@pytest.mark.parametrize("question", ["What happens?", "a", "system", "two\nlines, and ünïcödé: 視頻 🎬"])
def test_prompt_ids_are_those_of_transformers(
    processor: Qwen25VLProcessor, reference: QwenReference, question: str
) -> None:
    check_prompt_ids(processor, reference, question)


@settings(max_examples=40)
@given(st.integers(1, 12), st.integers(2, 6), st.integers(2, 6), st.sampled_from([0.3, 1.0, 2.0, 2.5, 24.0, None]))
def test_positions_are_those_of_transformers(
    processor: Qwen25VLProcessor,
    reference: QwenReference,
    frames: int,
    height: int,
    width: int,
    fps: float | None,
) -> None:
    video = np.zeros((frames, height * TOKEN_SIDE, width * TOKEN_SIDE, 3), np.uint8)
    times = () if fps is None else tuple(1.5 + index / fps for index in range(frames))
    prepared = processor.prepare(Prompt(QUESTION, video, times))
    rate = 2.0 if fps is None or frames == 1 else fps
    expected = reference.positions(reference.inputs(QUESTION, video, 2 / rate))
    np.testing.assert_array_equal(prepared.positions, expected.numpy())
    assert prepared.next_position == int(expected.max()) + 1


@pytest.mark.parametrize("fps", [23.976, 24.0, 25.0, 29.97, 30.0, 60.0])
def test_positions_do_not_hang_on_the_frame_nearest_to_a_time(processor: Qwen25VLProcessor, fps: float) -> None:
    """Two frames a second out of a video of any rate are a second a pair, so two positions."""
    video = np.zeros((36, 2 * TOKEN_SIDE, 2 * TOKEN_SIDE, 3), np.uint8)
    times = tuple(np.float32(round(index / 2 * fps) / fps).item() for index in range(36))
    prepared = processor.prepare(Prompt(QUESTION, video, times))
    start = prepared.video[0]
    assert prepared.positions[0, prepared.video[::4]].tolist() == [start + 2 * pair for pair in range(18)]


@settings(max_examples=40)
@given(st.integers(1, 6), st.integers(1, 5), st.integers(1, 5), st.data())
def test_compact_positions(
    processor: Qwen25VLProcessor, frames: int, height: int, width: int, data: st.DataObject
) -> None:
    """Kept tokens stay in order on every axis, text keeps one position on all, and only what was dropped closes up."""
    video = np.zeros((2 * frames, height * TOKEN_SIDE, width * TOKEN_SIDE, 3), np.uint8)
    prepared = processor.prepare(Prompt(QUESTION, video))
    kept = data.draw(st.lists(st.booleans(), min_size=prepared.video_tokens, max_size=prepared.video_tokens))
    rows = prepared.kept_rows(torch.tensor(kept))
    before = prepared.positions[:, rows]
    after, behind = prepared.compacted(rows)
    dropped = set(np.unique(prepared.positions)) - set(np.unique(before))
    np.testing.assert_array_equal(after, before - [[sum(d < p for d in dropped) for p in axis] for axis in before])
    text = ~np.isin(rows, prepared.video)
    assert (after[:, text] == after[0, text]).all()
    assert behind == prepared.next_position - len(dropped)
    if all(kept):
        np.testing.assert_array_equal(after, before)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, FrameDefaults(768, fps=2.0, min_frames=4, multiple=2)),
        ({"fps": 1, "min_frames": 6, "max_frames": 64}, FrameDefaults(64, fps=1, min_frames=6, multiple=2)),
        ({"num_frames": 16}, FrameDefaults(16)),
    ],
)
def test_frame_defaults(
    changed: Callable[..., Qwen25VLProcessor], settings: dict[str, Any], expected: FrameDefaults
) -> None:
    assert changed("preprocessor_config.json", **settings).frame_defaults == expected


def test_video_settings_come_before_those_of_images(changed: Callable[..., Qwen25VLProcessor]) -> None:
    """As transformers 5 saves them: ``size`` with the edges' old names, for numbers of pixels."""
    size = {"shortest_edge": 16 * TOKEN_SIDE**2, "longest_edge": 20 * TOKEN_SIDE**2}
    found = changed("video_preprocessor_config.json", size=size, patch_size=14)
    assert found.frame_size(2, 10, 10) == (4 * TOKEN_SIDE, 4 * TOKEN_SIDE)
    assert found.frame_size(2, 2000, 2000) == (4 * TOKEN_SIDE, 4 * TOKEN_SIDE)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("preprocessor_config.json", {"patch_size": 16}, "patch_size=16.*14"),
        ("preprocessor_config.json", {"merge_size": 1}, "spatial_merge_size is 2"),
        ("preprocessor_config.json", {"temporal_patch_size": 1}, "temporal_patch_size"),
        ("preprocessor_config.json", {"do_resize": False}, "do_resize"),
        ("config.json", {"video_token_id": None}, "video_token_id"),
        ("config.json", {"model_type": "qwen2_vl"}, "'qwen2_vl'.*supported: 'llava_onevision', 'qwen2_5_vl'"),
    ],
)
def test_what_is_not_supported(
    changed: Callable[..., Qwen25VLProcessor], name: str, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        changed(name, **changes)


def test_frames_that_were_not_resized_are_refused(processor: Qwen25VLProcessor) -> None:
    with pytest.raises(PromptError, match="multiples of 28"):
        processor.prepare(Prompt("What?", random_frames(2, 30, 28)))
    with pytest.raises(PromptError, match="uint8"):
        processor.resize(np.zeros((2, 28, 28, 3), np.float32))
    with pytest.raises(PromptError, match="2 frames, but 3 timestamps"):
        processor.prepare(Prompt("What?", random_frames(2, 56, 56), (0.0, 1.0, 2.0)))


@pytest.mark.parametrize("token", ["<|video_pad|>", "<|vision_start|>", "<|im_end|>"])
def test_a_question_cannot_inject_special_tokens(processor: Qwen25VLProcessor, token: str) -> None:
    with pytest.raises(PromptError, match=token.replace("|", r"\|")):
        processor.prepare(Prompt(f"what is {token} here"))


def test_the_released_layout_is_what_it_says(checkpoint: Path) -> None:
    """The text's keys at the top, and no settings of transformers 5."""
    found = json.loads((checkpoint / "config.json").read_text())
    assert {"hidden_size", "rope_scaling", "vision_config", "torch_dtype"} <= set(found)
    assert not {"text_config", "rope_parameters", "dtype"} & set(found)
    assert found["rope_scaling"]["type"] == "mrope"
