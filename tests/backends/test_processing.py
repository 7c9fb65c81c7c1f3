"""Frames, prompts, tokenizers and settings, against transformers where it has a say."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoTokenizer
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import LlavaOnevisionImageProcessorPil

from pvlm_backends.families import load_processor
from pvlm_backends.families.llava_onevision import LlavaOnevisionProcessor
from pvlm_backends.processing.chat import ChatTemplate
from pvlm_backends.processing.files import locate_checkpoint
from pvlm_protocols.backend import CheckpointError, FrameDefaults, Prompt, PromptError

from .conftest import BUNDLED, edit_settings, random_frames
from .reference import Reference

# As released with LLaVA-OneVision.
RELEASED_TEMPLATE = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + ' '}}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>' }}{% endfor %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'video') %}{{ '<video>' }}{% endfor %}"
    "{% if message['role'] != 'assistant' %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{{ '\\n' + content['text'] }}"
    "{% endfor %}{% else %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{% generation %}{{ '\\n' + content['text'] }}{% endgeneration %}{% endfor %}{% endif %}"
    "{{'<|im_end|>'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
QUESTIONS = [
    "What happens first in the video?",
    "a",
    "user",
    "assistant",
    "  spaces around  ",
    "two\nlines, and ünïcödé: 視頻 🎬",
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the bundled target's settings, to change."""
    copied = tmp_path / "checkpoint"
    shutil.copytree(BUNDLED / "target", copied, ignore=shutil.ignore_patterns("*.safetensors"))
    return copied


@pytest.fixture(scope="module")
def processor() -> LlavaOnevisionProcessor:
    return load_processor(str(BUNDLED / "target"))


@pytest.mark.parametrize("size", [(112, 112), (37, 53), (480, 641), (113, 111), (1, 300)])
def test_pixels_are_those_of_transformers(processor: LlavaOnevisionProcessor, size: tuple[int, int]) -> None:
    frames = random_frames(2, *size)
    resized = processor.resize(frames)
    assert (resized.dtype, resized.shape) == (np.uint8, (2, 112, 112, 3))
    pixels = processor.normalize(resized)
    assert (pixels.dtype, pixels.shape) == (np.float32, (2, 3, 112, 112))
    np.testing.assert_array_equal(pixels[None], Reference(BUNDLED / "target").pixels(frames).numpy())


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
def test_pixels_follow_the_settings(folder: Path, changes: dict[str, Any], place: str) -> None:
    settings = json.loads((folder / "preprocessor_config.json").read_text()) | changes
    (folder / "video_preprocessor_config.json").unlink()
    if place == "processor_config.json":
        (folder / "preprocessor_config.json").unlink()
        edit_settings(folder / place, video_processor=settings)
    else:
        (folder / place).write_text(json.dumps(settings))
    found = load_processor(str(folder))
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
def test_frame_defaults(folder: Path, settings: dict[str, Any], expected: FrameDefaults) -> None:
    unsaid = {"do_sample_frames": None, "num_frames": None}
    edit_settings(folder / "video_preprocessor_config.json", **unsaid | settings)
    assert load_processor(str(folder)).frame_defaults == expected


@pytest.mark.parametrize("template", [None, RELEASED_TEMPLATE])
@pytest.mark.parametrize("place", ["chat_template.jinja", "chat_template.json", "tokenizer_config.json"])
def test_prompt_ids_are_those_of_transformers(folder: Path, template: str | None, place: str) -> None:
    source = template or (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").unlink()
    if place == "tokenizer_config.json":
        edit_settings(folder / place, chat_template=source)
    else:
        (folder / place).write_text(source if place.endswith("jinja") else json.dumps({"chat_template": source}))
    processor = load_processor(str(folder))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for question in QUESTIONS:
        for frames in (None, random_frames(3, 112, 112)):
            content = [] if frames is None else [{"type": "video"}]
            messages = [{"role": "user", "content": [*content, {"type": "text", "text": question}]}]
            text = tokenizer.apply_chat_template(
                messages, add_generation_prompt=True, tokenize=False, chat_template=source
            )
            text = text.replace("<video>", "<video>" * (3 * 16 + 1))
            prepared = processor.prepare(Prompt(question, frames))
            assert prepared.ids.tolist() == tokenizer(text)["input_ids"]
            start, stop = prepared.question
            assert question.strip() in tokenizer.decode(prepared.ids[start:stop])
            assert len(tokenizer.decode(prepared.ids[start:stop]).strip()) <= len(question.strip()) + 2
            assert prepared.video_tokens == (0 if frames is None else 3 * 16)
            first, last = prepared.placeholders
            assert set(prepared.ids[first:last]) <= {4}
            assert prepared.ids.tolist().count(4) == last - first


def test_the_question_s_span_is_not_that_of_a_word_of_the_template(processor: LlavaOnevisionProcessor) -> None:
    plain = processor.prepare(Prompt("zebra"))
    for question in ("user", "assistant"):
        prepared = processor.prepare(Prompt(question))
        assert prepared.question[0] == plain.question[0]


@pytest.mark.parametrize("token", ["<video>", "<image>", "<|im_end|>", "<|im_start|>"])
def test_a_question_cannot_inject_special_tokens(processor: LlavaOnevisionProcessor, token: str) -> None:
    with pytest.raises(PromptError, match=token.replace("|", r"\|")):
        processor.prepare(Prompt(f"what is {token} here"))


def test_an_empty_question_is_refused(processor: LlavaOnevisionProcessor) -> None:
    with pytest.raises(PromptError, match="empty"):
        processor.prepare(Prompt(" \n"))


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


def test_decode_leaves_special_tokens_out(processor: LlavaOnevisionProcessor) -> None:
    tokenizer = AutoTokenizer.from_pretrained(BUNDLED / "target")
    text = "A red circle moves: ünïcödé 🎬"
    ids = tokenizer(text)["input_ids"]
    assert processor.decode([1, *ids, 2]) == text
    assert processor.decode([*ids, 767]) == text  # an id of the logits' padding
    assert processor.decode(ids[:-1]).endswith("\ufffd")
    assert processor.decode([]) == ""


def test_tokens_as_text(processor: LlavaOnevisionProcessor) -> None:
    tokenizer = AutoTokenizer.from_pretrained(BUNDLED / "target")
    assert list(processor.tokens_as_text()) == tokenizer.convert_ids_to_tokens(range(len(tokenizer)))


def test_fingerprint(folder: Path, processor: LlavaOnevisionProcessor) -> None:
    def fingerprint(change: Callable[[dict[str, Any]], object]) -> str:
        settings = json.loads((BUNDLED / "target" / "tokenizer.json").read_text())
        change(settings)
        (folder / "tokenizer.json").write_text(json.dumps(settings, sort_keys=True))
        return load_processor(str(folder)).tokenizer_fingerprint

    own = processor.tokenizer_fingerprint
    assert load_processor(str(BUNDLED / "draft")).tokenizer_fingerprint == own
    assert fingerprint(lambda _: None) == own
    assert fingerprint(lambda s: s.update(truncation=None, post_processor=None)) == own
    as_text = [
        " ".join(pair) for pair in json.loads((BUNDLED / "target/tokenizer.json").read_text())["model"]["merges"]
    ]
    assert fingerprint(lambda s: s["model"].update(merges=as_text)) == own
    assert fingerprint(lambda s: s["model"]["merges"].pop()) != own
    assert fingerprint(lambda s: s["pre_tokenizer"].update(add_prefix_space=True)) != own

    def swap(settings: dict[str, Any]) -> None:
        vocabulary = settings["model"]["vocab"]
        vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]

    assert fingerprint(swap) != own


def test_end_tokens_and_ignored_options(folder: Path) -> None:
    generation = folder / "generation_config.json"
    edit_settings(generation, eos_token_id=[2, 0, 2], repetition_penalty=1.1, temperature=0.5, no_repeat_ngram_size=0)
    processor = load_processor(str(folder))
    assert processor.end_token_ids == (2, 0)
    assert processor.ignored_generation_options == ("repetition_penalty=1.1",)
    edit_settings(generation, eos_token_id=None, repetition_penalty=1.0, suppress_tokens=[5])
    processor = load_processor(str(folder))
    assert processor.end_token_ids == (2,)  # text_config's
    assert processor.ignored_generation_options == ("suppress_tokens=[5]",)
    generation.unlink()
    edit_settings(folder / "config.json", eos_token_id=1)
    assert load_processor(str(folder)).end_token_ids == (1,)
    edit_settings(folder / "config.json", eos_token_id="</s>")
    with pytest.raises(CheckpointError, match="</s>"):
        load_processor(str(folder))


def test_placeholder_ids_under_both_names(folder: Path, processor: LlavaOnevisionProcessor) -> None:
    edit_settings(folder / "config.json", video_token_index=None, video_token_id=4)
    assert load_processor(str(folder)).video_token_id == processor.video_token_id == 4
    edit_settings(folder / "config.json", video_token_id=None)
    with pytest.raises(CheckpointError, match="video_token_index"):
        load_processor(str(folder))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", None, "config.json"),
        ("config.json", "{", "config.json"),
        ("config.json", "[]", "list"),
        ("config.json", '{"model_type": "qwen2_vl"}', "qwen2_vl"),
        ("tokenizer.json", None, "tokenizer.json"),
        ("tokenizer.json", "{}", "tokenizer.json"),
        ("chat_template.jinja", None, "chat template"),
        ("chat_template.jinja", "{% for", "chat template"),
        ("video_preprocessor_config.json", '{"size": {"height": 384, "width": 384}}', "384"),
        ("video_preprocessor_config.json", '{"size": {"shortest_edge": 112}}', "shortest_edge"),
    ],
)
def test_damaged_checkpoints(folder: Path, name: str, content: str | None, message: str) -> None:
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_text(content)
    with pytest.raises(CheckpointError, match=message):
        load_processor(str(folder))


def test_templates_that_cannot_be_used(folder: Path) -> None:
    template = folder / "chat_template.jinja"
    for source, error, message in (
        ("{{ messages[0]['content'][-1]['text'] }}", CheckpointError, "0 times"),
        ("<video>{{ messages[0]['content'][-1]['text'] | upper }}", CheckpointError, "as it stands"),
        ("<video>", CheckpointError, "as it stands"),
        ("{{ raise_exception('no videos') }}", PromptError, "no videos"),
        ("{{ messages.append(1) }}", PromptError, "template"),
    ):
        template.write_text(source)
        with pytest.raises(error, match=message):
            load_processor(str(folder)).prepare(Prompt("What?", random_frames(1, 112, 112)))


def test_templates_know_the_special_tokens() -> None:
    template = ChatTemplate("{{ eos_token }}{{ messages[0]['content'][0]['text'] | tojson }}", {"eos_token": "</s>"})
    assert template.render([{"type": "text", "text": "<é>"}]) == '</s>"<é>"'


def test_where_a_checkpoint_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def refuse(*_: object, **__: object) -> str:
        raise OSError("no network")

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", refuse)
    for model, message in (
        (str(tmp_path / "none"), "no folder"),
        ("no/such", "no network"),
        (str(BUNDLED / "target/config.json"), "is a file"),
    ):
        with pytest.raises(CheckpointError, match=message):
            locate_checkpoint(model)
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *_, **__: None)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(CheckpointError, match="fetching 'no/such' .* failed: OSError: no network"):
        locate_checkpoint("no/such")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(tmp_path))
    assert locate_checkpoint("no/such") == tmp_path
