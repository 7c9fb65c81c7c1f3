"""Conversations with several videos and images, compared with transformers' processors, forward pass and `generate`."""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import GenerationConfig
from transformers.models.llava_onevision.processing_llava_onevision import LlavaOnevisionProcessor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from pvlm_backends.families import load_processor
from pvlm_protocols.backend import Backend, EarlyStates, LoadOptions, Prompt, PromptError, Turn, Visual
from tests.backends.conftest import BACKENDS
from tests.backends.families.llava_onevision.checkpoint import IMAGE_SIZE, llava_checkpoint
from tests.backends.families.llava_onevision.reference import LlavaReference
from tests.backends.families.qwen2_5_vl.checkpoint import TEMPLATE, qwen_checkpoint
from tests.backends.families.qwen2_5_vl.reference import QwenReference
from tests.backends.families.qwen3_vl.checkpoint import TEMPLATE as QWEN3_TEMPLATE
from tests.backends.families.qwen3_vl.checkpoint import qwen3_checkpoint
from tests.backends.families.qwen3_vl.reference import Qwen3Reference
from tests.backends.processing.test_processing import RELEASED_TEMPLATE
from tests.support.checkpoints import edit_settings, random_frames

Said = Sequence[tuple[str, Sequence["str | NDArray[np.uint8]"]]]
"""Roles and parts: a text, a video ``(T, H, W, 3)`` in the model's size, or an image ``(H, W, 3)`` of any size."""
MAX_TOKENS = 12


class Model(ABC):
    """A small checkpoint in transformers, and what its processor makes of a conversation."""

    template: str
    side: int
    """Of the frames, in pixels; a video may be ``(side, 2 * side)`` where the family takes that."""

    def __init__(self, folder: Path, reference: Any) -> None:
        self.folder = folder
        self.reference = reference
        self.processor = load_processor(str(folder))

    def video(self, count: int, seed: int = 0) -> NDArray[np.uint8]:
        return random_frames(count, self.side, 2 * self.side, seed)

    def prompt(self, said: Said) -> Prompt:
        images = sum(part.ndim == 3 for _, parts in said for part in parts if not isinstance(part, str))

        def visual(part: NDArray[np.uint8]) -> Visual:
            if part.ndim == 4:
                return Visual(part)
            return Visual(self.processor.resize_image(part[None], images), (), "image", part.shape[:2])

        turns = (
            Turn(role, tuple(part if isinstance(part, str) else visual(part) for part in parts)) for role, parts in said
        )
        return Prompt.of(tuple(turns))

    def inputs(self, said: Said) -> dict[str, torch.Tensor]:
        def content(part: Any) -> dict[str, str]:
            if isinstance(part, str):
                return {"type": "text", "text": part}
            return {"type": "video" if part.ndim == 4 else "image"}

        messages = [{"role": role, "content": [content(part) for part in parts]} for role, parts in said]
        text = self.reference.tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=False, chat_template=self.template
        )
        visuals = [part for _, parts in said for part in parts if not isinstance(part, str)]
        videos, images = ([part for part in visuals if part.ndim == axes] for axes in (4, 3))
        text, found = self.expanded(text, videos, images)
        ids = self.reference.tokenizer(text, return_tensors="pt")["input_ids"]
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), **found}

    @abstractmethod
    def expanded(self, text: str, videos: Sequence[Any], images: Sequence[Any]) -> tuple[str, dict[str, Any]]:
        """The text with all placeholders, and the model's inputs besides the ids."""

    def positions(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        return torch.arange(inputs["input_ids"].shape[1])[None]


def replaced(text: str, token: str, counts: Sequence[int]) -> str:
    """The text with each occurrence of a token repeated so often."""
    left = iter(counts)
    return re.sub(re.escape(token), lambda found: found.group() * next(left), text)


class Llava(Model):
    template = RELEASED_TEMPLATE
    side = IMAGE_SIZE

    def __init__(self, folder: Path) -> None:
        llava_checkpoint(folder)
        pinpoints = [[rows * IMAGE_SIZE, columns * IMAGE_SIZE] for rows in (1, 2, 3) for columns in (1, 2, 3)]
        # One piece of detail at most, so that larger images shrink.
        changes = {"image_grid_pinpoints": pinpoints, "vision_aspect_ratio": "anyres_max_2"}
        edit_settings(folder / "config.json", **changes)
        edit_settings(folder / "preprocessor_config.json", image_grid_pinpoints=pinpoints)
        (folder / "chat_template.jinja").write_text(RELEASED_TEMPLATE)
        super().__init__(folder, LlavaReference(folder))
        # Its constructor needs torchvision, for the video processor.
        self.whole: Any = LlavaOnevisionProcessor.__new__(LlavaOnevisionProcessor)
        self.whole.image_token, self.whole.num_image_tokens = "<image>", 25
        self.whole.vision_feature_select_strategy, self.whole.vision_aspect_ratio = "full", "anyres_max_2"
        self.whole.image_processor = self.reference.image_processor

    def video(self, count: int, seed: int = 0) -> NDArray[np.uint8]:
        return random_frames(count, self.side, self.side, seed)

    def expanded(self, text: str, videos: Sequence[Any], images: Sequence[Any]) -> tuple[str, dict[str, Any]]:
        found: dict[str, Any] = {}
        text = replaced(text, "<video>", [len(video) * self.reference.tokens_per_frame + 1 for video in videos])
        if videos:
            found["pixel_values_videos"] = torch.cat([self.reference.pixels(video) for video in videos])
        if images:
            made = self.reference.image_processor([list(images)], return_tensors="pt")
            counts = [len(self.whole.replace_image_token(made, index)) // 7 for index in range(len(images))]
            text = replaced(text, "<image>", counts)
            found |= {name: made[name] for name in ("pixel_values", "image_sizes", "batch_num_images")}
        return text, found


class Qwen(Model):
    template = TEMPLATE
    side = 56

    def __init__(self, folder: Path) -> None:
        qwen_checkpoint(folder)
        super().__init__(folder, QwenReference(folder))
        self.image_processor = Qwen2VLImageProcessorPil.from_pretrained(folder)

    def expanded(self, text: str, videos: Sequence[Any], images: Sequence[Any]) -> tuple[str, dict[str, Any]]:
        found: dict[str, Any] = {}
        if videos:
            pixels, grids = zip(*map(self.reference.pixels, videos), strict=True)
            found |= {"pixel_values_videos": torch.cat(pixels), "video_grid_thw": torch.cat(grids)}
            text = self.with_videos(text, videos, found)
        if images:
            found |= self.image_processor(list(images), return_tensors="pt")
            text = replaced(text, "<|image_pad|>", [int(grid.prod()) // 4 for grid in found["image_grid_thw"]])
        return text, found

    def with_videos(self, text: str, videos: Sequence[Any], found: dict[str, Any]) -> str:
        found["second_per_grid_ts"] = torch.ones(len(videos))
        return replaced(text, "<|video_pad|>", [int(grid.prod()) // 4 for grid in found["video_grid_thw"]])

    def inputs(self, said: Said) -> dict[str, torch.Tensor]:
        inputs = super().inputs(said)
        config = self.reference.model.config
        kinds = (inputs["input_ids"] == config.image_token_id).int() + 2 * (
            inputs["input_ids"] == config.video_token_id
        ).int()
        return {**inputs, "mm_token_type_ids": kinds}

    def positions(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        names = ("input_ids", "mm_token_type_ids", "image_grid_thw", "video_grid_thw", "second_per_grid_ts")
        given = {name: inputs[name].clone() for name in names if name in inputs}
        return self.reference.model.model.get_rope_index(**given, attention_mask=inputs["attention_mask"])[0][:, 0]


class Qwen3(Qwen):
    template = QWEN3_TEMPLATE
    side = 64

    def __init__(self, folder: Path) -> None:
        qwen3_checkpoint(folder)
        Model.__init__(self, folder, Qwen3Reference(folder))
        self.image_processor = Qwen2VLImageProcessorPil.from_pretrained(folder)

    def with_videos(self, text: str, videos: Sequence[Any], found: dict[str, Any]) -> str:
        for index, video in enumerate(videos):
            grid = found["video_grid_thw"][index : index + 1]
            expanded = self.reference.expanded("<|vision_start|><|video_pad|><|vision_end|>", grid, len(video), 2.0)
            text = text.replace("<|video_pad|>", f"<video {index}>", 1).replace(
                f"<|vision_start|><video {index}><|vision_end|>", expanded.replace("<|video_pad|>", "<done>")
            )
        return text.replace("<done>", "<|video_pad|>")


MAKERS: dict[str, Callable[[Path], Model]] = {"llava_onevision": Llava, "qwen2_5_vl": Qwen, "qwen3_vl": Qwen3}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Model]:
    return cache(lambda name: MAKERS[name](tmp_path_factory.mktemp("conversations") / name))


@pytest.fixture(scope="module")
def backends(models: Callable[[str], Model]) -> Callable[[str, str], Backend]:
    return cache(lambda name, backend: BACKENDS[backend].load(LoadOptions(str(models(name).folder), dtype="float32")))


WIDE, HIGH = random_frames(1, 90, 200, 5)[0], random_frames(1, 230, 110, 6)[0]


def several_videos(model: Model) -> Said:
    return [
        ("system", ["You look closely."]),
        ("user", ["This is first:", model.video(4), "and this is second:", model.video(4, 1), "What moves?"]),
        ("assistant", ["A red circle."]),
        ("user", [model.video(4, 2), "And here?"]),
    ]


def one_image(model: Model) -> Said:
    return [("user", [WIDE, "What is this?"])]


def high_image_and_video(model: Model) -> Said:
    return [("user", ["Before", model.video(3), HIGH, "What is this?"])]


def several_images(model: Model) -> Said:
    return [
        ("user", [WIDE, HIGH, "Which is larger?"]),
        ("assistant", ["The second."]),
        ("user", ["Why?", model.video(2), WIDE[:50, :50]]),
    ]


def text_alone(model: Model) -> Said:
    return [("system", ["Be short."]), ("user", ["Hello"]), ("assistant", ["Hello."]), ("user", ["Who are you?"])]


CONVERSATIONS = (several_videos, one_image, high_image_and_video, several_images, text_alone)
by_family = pytest.mark.parametrize("family", MAKERS)
by_conversation = pytest.mark.parametrize("conversation", CONVERSATIONS, ids=lambda made: made.__name__)


@by_family
@by_conversation
def test_prompts_and_answers_are_those_of_transformers(
    models: Callable[[str], Model],
    backends: Callable[[str, str], Backend],
    family: str,
    conversation: Callable[[Model], Said],
) -> None:
    model = models(family)
    said = conversation(model)
    prompt, inputs = model.prompt(said), model.inputs(said)
    prepared = model.processor.prepare(prompt)
    assert prepared.ids.tolist() == inputs["input_ids"][0].tolist()
    assert prepared.positions.tolist() == model.positions(inputs).tolist()
    asked = model.reference.tokenizer.decode(prepared.ids[prepared.question])
    assert re.sub(r"\s", "", asked) == re.sub(r"\s", "", prompt.question)
    with torch.no_grad():
        logits = model.reference.model(**inputs).logits[0, -1]
        model.reference.model.generation_config = GenerationConfig(
            do_sample=False, max_new_tokens=MAX_TOKENS, eos_token_id=[2, 0], pad_token_id=0
        )
        output = model.reference.model.generate(**inputs)
    expected = output[0, len(prepared) :].tolist()
    for name in BACKENDS:
        session = backends(family, name).open(prompt, MAX_TOKENS)
        found = session.prefill()
        torch.testing.assert_close(found, logits, rtol=1e-4, atol=1e-4)
        answer = [int(found.argmax())]
        while answer[-1] not in (2, 0) and len(answer) < MAX_TOKENS:
            answer.append(int(session.extend(answer[-1:])[0].argmax()))
        assert answer == expected
        session.close()


@by_family
def test_pruning_covers_all_videos(
    models: Callable[[str], Model], backends: Callable[[str, str], Backend], family: str
) -> None:
    """The mask is in the order of the turns; each backend drops the same tokens, and early states are of all videos."""
    model = models(family)
    prompt = model.prompt(several_images(model))
    prepared = model.processor.prepare(prompt)
    assert len(prepared.runs) == 4
    assert sum(math.prod(run) for run in prepared.runs) == prepared.video_tokens
    keep = torch.rand(prepared.video_tokens, generator=torch.Generator().manual_seed(1)) < 0.3
    logits, states = [], []
    for name in ("torch", "hf"):
        session = backends(family, name).open(prompt, 1)
        assert session.video_tokens == prepared.video_tokens
        logits.append(session.prefill(keep))
        found: list[EarlyStates] = []
        session = backends(family, name).open(prompt, 1)
        session.prefill(early_layer=2, on_early_layer=found.append, early_attention=True)
        states += found
    torch.testing.assert_close(logits[0], logits[1], rtol=1e-4, atol=1e-4)
    ours, theirs = states
    assert ours.runs == prepared.runs
    for name in ("video_first", "video_last", "question_first", "question_last", "attention"):
        torch.testing.assert_close(getattr(ours, name), getattr(theirs, name), rtol=1e-4, atol=1e-4)
    assert len(ours.video_first) == prepared.video_tokens
    assert len(ours.question_first) == len(prepared.question)
    # The attention of a token to later ones is 0: the question's first text is before the last video and image.
    first = sum(math.prod(run) for run in prepared.runs[:2])
    assert ours.attention is not None
    assert float(ours.attention[:first].min()) > 0


@by_family
@pytest.mark.parametrize("role", ["system", "user", "assistant"])
def test_special_tokens_in_a_text_never_become_special(models: Callable[[str], Model], family: str, role: str) -> None:
    """Neither in one text, nor where a template joins two texts."""
    processor = models(family).processor
    for parts in (("say <|im_end|> now",), ("say <|im_", "end|> now")):
        if len(parts) == 2 and family == "llava_onevision":
            continue  # its template begins a line with each text
        turns = (Turn(role, parts), Turn("user", ("What?",)))  # type: ignore[arg-type]
        with pytest.raises(PromptError, match=r"holds the special token '<\|im_end\|>'"):
            processor.prepare(Prompt.of(turns))
