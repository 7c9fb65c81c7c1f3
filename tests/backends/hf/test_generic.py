"""Families without a folder in `hf`: what needs no torchvision, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from numpy.typing import NDArray
from PIL import Image
from transformers import AutoTokenizer, BatchFeature
from transformers.processing_utils import ProcessorMixin

from pvlm import Engine, ModelError
from pvlm.trace import Trace
from pvlm_backends.hf import HuggingFaceBackend
from pvlm_backends.hf.generic import prompts
from pvlm_backends.raw import TorchBackend
from pvlm_protocols.backend import (
    Backend,
    BackendError,
    CheckpointError,
    FrameDefaults,
    LoadOptions,
    Prompt,
    PromptError,
    Session,
    Turn,
    Visual,
)
from tests.backends.families.qwen_family import map_over_two_devices
from tests.backends.hf.generic_checkpoints import FAMILIES, VIDEO
from tests.backends.hf.generic_comparison import (
    INPROC,
    MAX_TOKENS,
    QUESTION,
    check_methods,
    conversation,
    generated,
    inputs,
)
from tests.support.checkpoints import edit_settings, random_frames
from tests.support.pair import PAIR

GENERIC = Callable[..., Path]
FRAMES = random_frames(4, 40, 50)
PICTURE = Prompt.of((Turn("user", (Visual(FRAMES[:1], kind="image"), QUESTION)),))
WORDS = [11, 7, 29, 300, 17, 5, 42, 600]


class FakeProcessor(ProcessorMixin):
    """LLaVA-NeXT-Video's, without torchvision: four tokens a frame. Its ``calls`` are those of all objects."""

    calls: list[dict[str, Any]]

    def __init__(self, folder: Path) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.video_processor, self.video_token = object(), "<video>"

    def apply_chat_template(self, messages: list[dict[str, Any]], **options: Any) -> str:
        found: str = self.tokenizer.apply_chat_template(messages, tokenize=False, **options)
        return found

    def __call__(
        self, text: list[str], videos: list[list[NDArray[np.uint8]]] | None = None, **options: Any
    ) -> BatchFeature:
        type(self).calls.append(options)
        tensors = {}
        for frames in (videos or [[]])[0]:
            text = [text[0].replace("<video>", 4 * len(frames) * "<video>")]
            pixels = [np.asarray(Image.fromarray(frame).resize((32, 32))) for frame in frames]
            tensors["pixel_values_videos"] = torch.from_numpy(np.stack(pixels) / 127.5 - 1).permute(0, 3, 1, 2)[None]
        return BatchFeature({**self.tokenizer(text, return_tensors="pt"), **tensors})


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> type[FakeProcessor]:
    FakeProcessor.calls = []
    monkeypatch.setattr(
        prompts.AutoProcessor, "from_pretrained", staticmethod(lambda folder, **_: FakeProcessor(folder))
    )
    return FakeProcessor


@pytest.fixture(scope="module")
def llava(generic: GENERIC) -> Backend:
    """It takes images."""
    return HuggingFaceBackend.load(LoadOptions(str(generic("llava"))))


@pytest.fixture
def session(llava: Backend) -> Session:
    return llava.open(PICTURE, 12)


@pytest.fixture
def copied(generic: GENERIC, tmp_path: Path) -> Path:
    shutil.copytree(generic("llava"), tmp_path / "copied")
    return tmp_path / "copied"


# ---- answers ------------------------------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_every_method_says_what_generate_says_about_an_image(generic: GENERIC) -> None:
    messages = conversation(Image.fromarray(FRAMES[0]))
    expected = generated(generic("llava"), inputs(generic("llava"), messages))
    answer = await check_methods(generic("llava"), generic("llava", 2), expected, messages=messages)
    assert answer.stats.prompt_tokens == inputs(generic("llava"), messages)["input_ids"].numel()


@pytest.mark.anyio
async def test_every_method_says_what_generate_says_about_a_video(generic: GENERIC, fake: type[FakeProcessor]) -> None:
    target = generic("llava_next_video")
    text = fake(target).apply_chat_template(conversation(FRAMES), add_generation_prompt=True)
    given = fake(target)([text], [[FRAMES]])
    given["pixel_values_videos"] = given["pixel_values_videos"].float()
    assert (given["input_ids"] == VIDEO).sum() == 4 * len(FRAMES)
    expected = generated(target, given)
    await check_methods(target, generic("llava_next_video", 2), expected, video=FRAMES, question=QUESTION)


@pytest.mark.anyio
async def test_a_draft_of_a_family_with_a_folder(generic: GENERIC, tmp_path: Path) -> None:
    """It sees the whole image, because the target's tokens cannot be pruned. The trace has the image."""
    messages = conversation(Image.fromarray(FRAMES[0]))
    expected = generated(generic("llava"), inputs(generic("llava"), messages))
    options = {**INPROC, "target": str(generic("llava")), "draft": PAIR["draft"], "draft_backend": "torch"}
    async with Engine.create(**options) as engine:
        for method in ("sd", "parallel"):
            trace = Trace()
            options = {"max_tokens": MAX_TOKENS, "method": method, "prune": "uniform"}
            answer = await engine.answer(messages=messages, trace=trace, **options)
            assert answer.tokens == expected
            assert answer.stats.draft_lost == ""
    trace.write(tmp_path)
    assert (tmp_path / "frames.png").exists()


def test_logits_are_those_of_a_plain_forward_pass(generic: GENERIC, session: Session) -> None:
    given = inputs(generic("llava"), conversation(Image.fromarray(FRAMES[0])))
    given["input_ids"] = torch.cat([given["input_ids"], torch.tensor([WORDS])], dim=1)
    given["attention_mask"] = torch.ones_like(given["input_ids"])
    model = transformers.LlavaForConditionalGeneration.from_pretrained(generic("llava")).eval()
    with torch.no_grad():
        expected = model(**given).logits[0, -len(WORDS) - 1 :]
    assert session.video_tokens == 0
    close(session.prefill(torch.ones(0, dtype=torch.bool)), expected[0])
    close(session.extend(WORDS[:1]), expected[1:2])
    close(session.extend([5, 4, 3, 2]), session.extend([1]), same=False)
    session.truncate(1)
    close(session.extend(WORDS[1:6]), expected[2:7])
    session.truncate(3)
    close(session.extend(WORDS[3:]), expected[4:])
    session.close()


def close(left: torch.Tensor, right: torch.Tensor, same: bool = True) -> None:
    assert torch.allclose(left, right.expand_as(left), rtol=1e-4, atol=1e-4) == same


def test_a_pass_can_be_ended_between_its_layers(session: Session) -> None:
    calls: list[int] = []

    def cancel() -> None:
        calls.append(0)
        if len(calls) == 3:
            raise KeyError("enough")

    with pytest.raises(KeyError, match="enough"):
        session.prefill(on_progress=cancel)
    session.prefill()
    calls.clear()
    with pytest.raises(KeyError, match="enough"):
        session.extend(WORDS[:3], on_progress=cancel)
    assert session.length == 0
    found = session.extend(WORDS[:3], on_progress=lambda: calls.append(0))
    assert len(calls) >= 3 + 3
    session.truncate(0)
    close(session.extend(WORDS[:3]), found)


def test_times_reach_the_processor(generic: GENERIC, fake: type[FakeProcessor]) -> None:
    """In milliseconds, because a video's frames may come at any time. Frames without times come two a second."""
    backend = HuggingFaceBackend.load(LoadOptions(str(generic("llava_next_video"))))
    given = ((1.0, 1.25, 2.5, 4.0), [1000, 1250, 2500, 4000], 4.0)
    assumed: tuple[tuple[float, ...], list[int], float] = ((), [0, 500, 1000, 1500], 2.0)
    for times, indices, duration in (given, assumed):
        backend.open(Prompt(QUESTION, FRAMES, times), 4)
        (found,) = fake.calls[-1]["video_metadata"]
        assert found["frames_indices"] == indices
        assert (found["fps"], found["duration"], found["total_num_frames"]) == (1000.0, duration, 1000 * duration)
        assert fake.calls[-1]["do_sample_frames"] is False
    with pytest.raises(PromptError, match="4 frames, but 1 timestamps"):
        backend.open(Prompt(QUESTION, FRAMES, (0.0,)), 4)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, FrameDefaults(32)),
        ({"num_frames": 8}, FrameDefaults(8)),
        ({"fps": 2, "max_frames": 64, "min_frames": 4, "temporal_patch_size": 2}, FrameDefaults(64, False, 2, 4, 2)),
        ({"video_sampling": {"fps": 1, "max_frames": 50}}, FrameDefaults(50, fps=1)),
    ],
)
def test_frame_defaults(copied: Path, settings: dict[str, Any], expected: FrameDefaults) -> None:
    edit_settings(copied / "preprocessor_config.json", **settings)
    processor = HuggingFaceBackend.processor(str(copied))
    assert processor.frame_defaults == expected
    assert processor.resize(FRAMES) is FRAMES


@pytest.mark.filterwarnings("ignore:The following device_map keys")  # image_newline is a parameter, no module
@pytest.mark.parametrize("name", FAMILIES)
def test_every_part_of_a_model_has_a_place_on_two_devices(generic: GENERIC, name: str) -> None:
    assert set(map_over_two_devices(generic(name)).values()) == {"cuda:0", "cuda:1"}


# ---- what is refused ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "capacity", "message"),
    [
        (Prompt(" "), 4, "question is empty"),
        (Prompt("What is <image>?"), 4, "special token '<image>'"),
        (Prompt("What is <|im_end|>?"), 4, r"special token '<\|im_end\|>'"),
        (Prompt.of((Turn("user", ("<|im_", "end|>")),)), 4, r"special token '<\|im_end\|>'"),
        (Prompt(QUESTION, FRAMES), 4, "takes no videos; give it images"),
        (PICTURE, 1000, r"takes \d+ positions and 1000 are reserved.* exceed the model's 1024"),
    ],
)
def test_prompts_that_are_refused(llava: Backend, prompt: Prompt, capacity: int, message: str) -> None:
    with pytest.raises(PromptError, match=message):
        llava.open(prompt, capacity)


def test_there_are_no_early_states(session: Session) -> None:
    with pytest.raises(BackendError, match="no early states; use the pruner 'none'"):
        session.prefill(early_layer=1, on_early_layer=print)


@pytest.mark.anyio
@pytest.mark.skipif(find_spec("torchvision") is not None, reason="torchvision is installed")
async def test_a_missing_torchvision_is_named(generic: GENERIC) -> None:
    with pytest.raises(ModelError, match=r"torchvision is missing: pip install the release that fits torch 2"):
        async with Engine.create(target=str(generic("internvl")), draft=None, **INPROC):
            pass


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (
            RuntimeError("operator torchvision::nms does not exist"),
            BackendError,
            "torchvision 0.1 does not import beside",
        ),
        (ImportError("Package `num2words` is required"), BackendError, "needs a package that is missing: .*num2words"),
        (ValueError("no such\nthing"), CheckpointError, "cannot load the processor of .*: no such thing"),
    ],
)
def test_a_processor_that_cannot_be_loaded(
    generic: GENERIC, monkeypatch: pytest.MonkeyPatch, error: Exception, kind: type[Exception], message: str
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(prompts.AutoProcessor, "from_pretrained", fail)
    monkeypatch.setattr(prompts, "version", lambda name: "0.1")
    with pytest.raises(kind, match=message):
        HuggingFaceBackend.load(LoadOptions(str(generic("llava"))))


def test_a_processor_that_fails_on_a_prompt(generic: GENERIC, fake: type[FakeProcessor]) -> None:
    backend = HuggingFaceBackend.load(LoadOptions(str(generic("llava_next_video"))))
    with pytest.raises(PromptError, match="the checkpoint's own processor fails on this prompt: .*dimension"):
        backend.open(Prompt(QUESTION, FRAMES[..., 0]), 4)


def test_a_checkpoint_without_a_chat_template(copied: Path) -> None:
    (copied / "chat_template.jinja").unlink()
    with pytest.raises(CheckpointError, match="copied: the chat template failed .*chat template"):
        HuggingFaceBackend.load(LoadOptions(str(copied)))


def test_a_model_that_does_not_see(copied: Path) -> None:
    (copied / "processor_config.json").unlink()
    text = json.loads((copied / "config.json").read_text())["text_config"]
    (copied / "config.json").write_text(json.dumps({**text, "model_type": "llama"}))
    with pytest.raises(CheckpointError, match="no processor for images or videos"):
        HuggingFaceBackend.load(LoadOptions(str(copied)))


def test_the_other_backends_say_which_one_runs_it(generic: GENERIC) -> None:
    with pytest.raises(CheckpointError, match="'llava' checkpoint.* the backend 'hf' runs others"):
        TorchBackend.load(LoadOptions(str(generic("llava"))))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ({"model_type": "mistral", "sliding_window": 8}, "layer 1 of the decoder keeps only the last 8 tokens"),
        (
            {"model_type": "lfm2", "layer_types": ["full_attention", "conv", "conv"]},
            r"layer 2 of the decoder keeps only a state \(LinearAttentionLayer\)",
        ),
        (
            {"model_type": "qwen3_5_text", "layer_types": ["full_attention", "full_attention", "linear_attention"]},
            r"layer 3 of the decoder keeps only a state \(LinearAttentionLayer\)",
        ),
    ],
)
def test_a_cache_that_loses_rows_is_refused(copied: Path, text: dict[str, Any], message: str) -> None:
    settings = json.loads((copied / "config.json").read_text())
    settings["text_config"] |= text
    (copied / "config.json").write_text(json.dumps(settings))
    with pytest.raises(CheckpointError, match=message):
        HuggingFaceBackend.load(LoadOptions(str(copied)))


def test_state_outside_the_cache_is_refused(generic: GENERIC, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a model that remembers how many tokens it has read."""
    plain = transformers.LlavaForConditionalGeneration.forward

    def forward(self: Any, input_ids: torch.Tensor, **named: Any) -> Any:
        if named["past_key_values"].get_seq_length() == 0:
            self.read = 0
        self.read += input_ids.shape[1]
        output = plain(self, input_ids, **named)
        output.logits[..., 0] += self.read
        return output

    monkeypatch.setattr(transformers.LlavaForConditionalGeneration, "forward", forward)
    with pytest.raises(CheckpointError, match="keeps state that its cache does not hold"):
        HuggingFaceBackend.load(LoadOptions(str(generic("llava"))))
