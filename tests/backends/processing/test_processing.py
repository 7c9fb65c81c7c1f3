"""Prompts, tokenizers and settings, compared with transformers where it can compute them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoTokenizer

from pvlm_backends.families import load_processor
from pvlm_backends.families.llava_onevision import LlavaOnevisionProcessor
from pvlm_backends.processing.chat import ChatTemplate
from pvlm_backends.processing.files import locate_checkpoint
from pvlm_protocols.backend import CheckpointError, Prompt, PromptError
from tests.support.checkpoints import edit_settings, random_frames
from tests.support.pair import SMALL

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


@pytest.fixture(scope="module")
def processor() -> LlavaOnevisionProcessor:
    return load_processor(str(SMALL / "target"))


@pytest.mark.parametrize("template", [None, RELEASED_TEMPLATE])
@pytest.mark.parametrize("place", ["chat_template.jinja", "chat_template.json", "tokenizer_config.json"])
def test_prompt_ids_are_those_of_transformers(bundled_copy: Path, template: str | None, place: str) -> None:
    source = template or (bundled_copy / "chat_template.jinja").read_text()
    (bundled_copy / "chat_template.jinja").unlink()
    if place == "tokenizer_config.json":
        edit_settings(bundled_copy / place, chat_template=source)
    else:
        (bundled_copy / place).write_text(source if place.endswith("jinja") else json.dumps({"chat_template": source}))
    processor = load_processor(str(bundled_copy))
    tokenizer = AutoTokenizer.from_pretrained(bundled_copy)
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
            asked = tokenizer.decode(prepared.ids[prepared.question])
            assert question.strip() in asked
            assert len(asked.strip()) <= len(question.strip()) + 2
            assert prepared.video_tokens == (0 if frames is None else 3 * 16)
            np.testing.assert_array_equal(prepared.placeholders, np.flatnonzero(prepared.ids == 4))


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


def test_decode_leaves_special_tokens_out(processor: LlavaOnevisionProcessor) -> None:
    tokenizer = AutoTokenizer.from_pretrained(SMALL / "target")
    text = "A red circle moves: ünïcödé 🎬"
    ids = tokenizer(text)["input_ids"]
    assert processor.decode([1, *ids, 2]) == text
    assert processor.decode([*ids, 767]) == text  # an id of the logits' padding
    assert processor.decode(ids[:-1]).endswith("\ufffd")
    assert processor.decode([]) == ""


def test_tokens_as_text(processor: LlavaOnevisionProcessor) -> None:
    tokenizer = AutoTokenizer.from_pretrained(SMALL / "target")
    assert list(processor.tokens_as_text()) == tokenizer.convert_ids_to_tokens(range(len(tokenizer)))


def test_fingerprint(bundled_copy: Path, processor: LlavaOnevisionProcessor) -> None:
    def fingerprint(change: Callable[[dict[str, Any]], object]) -> str:
        settings = json.loads((SMALL / "target" / "tokenizer.json").read_text())
        change(settings)
        (bundled_copy / "tokenizer.json").write_text(json.dumps(settings, sort_keys=True))
        return load_processor(str(bundled_copy)).tokenizer_fingerprint

    def sequence(name: str, *parts: object) -> dict[str, object]:
        return {"type": "Sequence", name: list(parts)}

    own = processor.tokenizer_fingerprint
    assert load_processor(str(SMALL / "draft")).tokenizer_fingerprint == own
    assert fingerprint(lambda _: None) == own
    assert fingerprint(lambda s: s.update(truncation=None, post_processor=None)) == own
    as_text = [" ".join(pair) for pair in json.loads((SMALL / "target/tokenizer.json").read_text())["model"]["merges"]]
    assert fingerprint(lambda s: s["model"].update(merges=as_text)) == own
    assert fingerprint(lambda s: s["pre_tokenizer"].update(trim_offsets=False)) == own
    assert fingerprint(lambda s: s.update(pre_tokenizer=sequence("pretokenizers", s["pre_tokenizer"]))) == own
    assert fingerprint(lambda s: s.update(normalizer=sequence("normalizers"))) == own
    assert fingerprint(lambda s: s["model"].update(continuing_subword_prefix="", end_of_word_suffix="")) == own
    assert fingerprint(lambda s: s["model"].update(unk_token="<|endoftext|>", fuse_unk=True)) == own
    assert fingerprint(lambda s: s["model"].update(ignore_merges=True)) == own
    assert fingerprint(lambda s: s.update(normalizer={"type": "NFC"})) != own
    assert fingerprint(lambda s: s["model"]["merges"].pop()) != own
    without = fingerprint(lambda s: s["model"]["merges"].pop(100))
    assert fingerprint(lambda s: (s["model"]["merges"].pop(100), s["model"].update(ignore_merges=True))) != without
    assert fingerprint(lambda s: s["pre_tokenizer"].update(add_prefix_space=True)) != own

    def swap(settings: dict[str, Any]) -> None:
        vocabulary = settings["model"]["vocab"]
        vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]

    assert fingerprint(swap) != own


def test_end_tokens_and_ignored_options(bundled_copy: Path) -> None:
    generation = bundled_copy / "generation_config.json"
    edit_settings(generation, eos_token_id=[2, 0, 2], repetition_penalty=1.1, temperature=0.5, no_repeat_ngram_size=0)
    processor = load_processor(str(bundled_copy))
    assert processor.end_token_ids == (2, 0)
    assert processor.ignored_generation_options == ("repetition_penalty=1.1",)
    edit_settings(generation, eos_token_id=None, repetition_penalty=1.0, suppress_tokens=[5])
    processor = load_processor(str(bundled_copy))
    assert processor.end_token_ids == (2,)  # text_config's
    assert processor.ignored_generation_options == ("suppress_tokens=[5]",)
    generation.unlink()
    edit_settings(bundled_copy / "config.json", eos_token_id=1)
    assert load_processor(str(bundled_copy)).end_token_ids == (1,)
    edit_settings(bundled_copy / "config.json", eos_token_id="</s>")
    with pytest.raises(CheckpointError, match="</s>"):
        load_processor(str(bundled_copy))


def test_placeholder_ids_under_both_names(bundled_copy: Path, processor: LlavaOnevisionProcessor) -> None:
    edit_settings(bundled_copy / "config.json", video_token_index=None, video_token_id=4)
    assert load_processor(str(bundled_copy)).video_token_id == processor.video_token_id == 4
    edit_settings(bundled_copy / "config.json", video_token_id=None)
    with pytest.raises(CheckpointError, match="video_token_index"):
        load_processor(str(bundled_copy))


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
def test_damaged_checkpoints(bundled_copy: Path, name: str, content: str | None, message: str) -> None:
    (bundled_copy / name).unlink()
    if content is not None:
        (bundled_copy / name).write_text(content)
    with pytest.raises(CheckpointError, match=message):
        load_processor(str(bundled_copy))


def test_templates_that_cannot_be_used(bundled_copy: Path) -> None:
    template = bundled_copy / "chat_template.jinja"
    for source, error, message in (
        ("{{ messages[0]['content'][-1]['text'] }}", CheckpointError, "0 times"),
        ("<video>{{ messages[0]['content'][-1]['text'] | upper }}", CheckpointError, "as it stands"),
        ("<video>", CheckpointError, "as it stands"),
        ("{{ raise_exception('no videos') }}", PromptError, "no videos"),
        ("{{ messages.append(1) }}", PromptError, "template"),
        ("{{ 'a' + messages[0]['content'] }}", PromptError, "template failed on this prompt: can only concatenate str"),
    ):
        template.write_text(source)
        with pytest.raises(error, match=message):
            load_processor(str(bundled_copy)).prepare(Prompt("What?", random_frames(1, 112, 112)))


def test_templates_know_the_special_tokens() -> None:
    template = ChatTemplate("{{ eos_token }}{{ messages[0]['content'][0]['text'] | tojson }}", {"eos_token": "</s>"})
    assert template.render([{"role": "user", "content": [{"type": "text", "text": "<é>"}]}]) == '</s>"<é>"'


def test_where_a_checkpoint_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def refuse(*_: object, **__: object) -> str:
        raise OSError("no network")

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", refuse)
    for model, message in (
        (str(tmp_path / "none"), "no folder"),
        ("no/such", "no network"),
        (str(SMALL / "target/config.json"), "is a file"),
    ):
        with pytest.raises(CheckpointError, match=message):
            locate_checkpoint(model)
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *_, **__: None)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(CheckpointError, match="fetching 'no/such' .* failed: OSError: no network"):
        locate_checkpoint("no/such")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(tmp_path))
    assert locate_checkpoint("no/such") == tmp_path
