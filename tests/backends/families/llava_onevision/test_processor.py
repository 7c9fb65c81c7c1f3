"""Frames to pixels, compared with transformers where it can compute them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import LlavaOnevisionImageProcessorPil

from pvlm_backends.families import load_processor
from pvlm_backends.families.llava_onevision import LlavaOnevisionProcessor
from pvlm_protocols.backend import FrameDefaults, Prompt, PromptError
from tests.support.checkpoints import edit_settings, random_frames
from tests.support.pair import SMALL

from .reference import LlavaReference


@pytest.fixture(scope="module")
def processor() -> LlavaOnevisionProcessor:
    return load_processor(str(SMALL / "target"))


@pytest.mark.parametrize("size", [(112, 112), (37, 53), (480, 641), (113, 111), (1, 300)])
def test_pixels_are_those_of_transformers(processor: LlavaOnevisionProcessor, size: tuple[int, int]) -> None:
    frames = random_frames(2, *size)
    resized = processor.resize(frames)
    assert (resized.dtype, resized.shape) == (np.uint8, (2, 112, 112, 3))
    pixels = processor.normalize(resized)
    assert (pixels.dtype, pixels.shape) == (np.float32, (2, 3, 112, 112))
    np.testing.assert_array_equal(pixels[None], LlavaReference(SMALL / "target").pixels(frames).numpy())


@pytest.mark.parametrize(
    ("changes", "place"),
    [
        (
            {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6], "resample": 2},
            "video_preprocessor_config.json",
        ),
        ({"do_normalize": False}, "preprocessor_config.json"),
        ({"image_std": [0.4, 0.5, 0.6]}, "processor_config.json"),
    ],
)
def test_pixels_follow_the_settings(bundled_copy: Path, changes: dict[str, Any], place: str) -> None:
    settings = json.loads((bundled_copy / "preprocessor_config.json").read_text()) | changes
    (bundled_copy / "video_preprocessor_config.json").unlink()
    if place == "processor_config.json":
        (bundled_copy / "preprocessor_config.json").unlink()
        edit_settings(bundled_copy / place, video_processor=settings)
    else:
        (bundled_copy / place).write_text(json.dumps(settings))
    found = load_processor(str(bundled_copy))
    kept = {k: v for k, v in settings.items() if not k.endswith(("_class", "_type"))}
    theirs = LlavaOnevisionImageProcessorPil(**kept)
    frame = random_frames(1, 90, 150)
    expected = theirs(frame[0])["pixel_values"][0][:1]
    np.testing.assert_allclose(found.normalize(found.resize(frame)), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, FrameDefaults(32, False)),
        ({"do_sample_frames": True}, FrameDefaults(32, False)),
        ({"do_sample_frames": False}, FrameDefaults(128, True)),
        ({"do_sample_frames": False, "num_frames": 64}, FrameDefaults(64, True)),
    ],
)
def test_frame_defaults(bundled_copy: Path, settings: dict[str, Any], expected: FrameDefaults) -> None:
    unsaid = {"do_sample_frames": None, "num_frames": None}
    edit_settings(bundled_copy / "video_preprocessor_config.json", **unsaid | settings)
    assert load_processor(str(bundled_copy)).frame_defaults == expected


@pytest.mark.parametrize(
    "frames",
    [
        np.zeros((0, 112, 112, 3), np.uint8),
        np.zeros((2, 100, 112, 3), np.uint8),
        np.zeros((2, 112, 112, 4), np.uint8),
        np.zeros((2, 112, 112, 3), np.float32),
    ],
)
def test_frames_that_were_not_resized_are_refused(processor: LlavaOnevisionProcessor, frames: np.ndarray) -> None:
    with pytest.raises(PromptError, match="112"):
        processor.prepare(Prompt("What?", frames))
    if frames.shape[1:] != (100, 112, 3):
        with pytest.raises(PromptError, match="uint8"):
            processor.resize(frames)
