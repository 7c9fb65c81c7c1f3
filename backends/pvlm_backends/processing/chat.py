"""Chat templates, rendered as transformers renders them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from pvlm_protocols.backend import CheckpointError, PromptError, Turn, Visual

from .files import read_optional_settings, read_text

Span = tuple[int, int]
"""First character, and one more than the last."""

_SENTINEL = re.compile("\ue000(\\d+)\ue001")
_SPECIAL_NAMES = ("bos_token", "eos_token", "pad_token", "unk_token")


class _GenerationBlock(Extension):
    """``{% generation %}`` ... ``{% endgeneration %}``: marks text for training; here it only prints."""

    tags = frozenset({"generation"})  # type: ignore[assignment]

    def parse(self, parser: Parser) -> nodes.Node | list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class ChatTemplate:
    """A checkpoint's chat template.

    Args:
        source: the Jinja template.
        special_tokens: the names that the template may use (``bos_token``, ...), with their text.

    Raises:
        CheckpointError: the template cannot be compiled.
    """

    def __init__(self, source: str, special_tokens: dict[str, str] | None = None) -> None:
        # Templates come with checkpoints, so they are untrusted: the sandbox is not optional.
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationBlock, loopcontrols]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = lambda layout: datetime.now().strftime(layout)
        try:
            self._template = environment.from_string(source)
        except TemplateError as error:
            raise CheckpointError(f"the chat template cannot be compiled: {error}") from error
        self._special_tokens = special_tokens or {}

    @classmethod
    def from_folder(cls, folder: Path) -> ChatTemplate:
        """Load chat_template.jinja, else chat_template.json, else the key in the processor's or tokenizer's settings.

        Raises:
            CheckpointError: the folder has no template, or the template cannot be compiled.
        """
        tokenizer = read_optional_settings(folder, "tokenizer_config.json") or {}
        special_tokens = {
            name: token["content"] if isinstance(token, dict) else token
            for name in _SPECIAL_NAMES
            if (token := tokenizer.get(name)) is not None
        }
        jinja = folder / "chat_template.jinja"
        if jinja.is_file():
            return cls(read_text(jinja), special_tokens)
        for settings in (
            read_optional_settings(folder, "chat_template.json") or {},
            read_optional_settings(folder, "processor_config.json") or {},
            tokenizer,
        ):
            source = settings.get("chat_template")
            if isinstance(source, list):  # several templates by name
                source = {entry["name"]: entry["template"] for entry in source}.get("default")
            if isinstance(source, str):
                return cls(source, special_tokens)
        raise CheckpointError(f"{folder} holds no chat template (chat_template.jinja or chat_template.json)")

    def render(self, messages: Sequence[Mapping[str, Any]]) -> str:
        """Render the prompt for these messages, up to the assistant's turn.

        Raises:
            PromptError: the template refuses the messages.
        """
        try:
            return self._template.render(
                messages=list(messages),
                tools=None,
                documents=None,
                add_generation_prompt=True,
                **self._special_tokens,
            )
        except Exception as error:  # a template may add a text and a list, or divide by zero
            raise PromptError(f"the chat template failed on this prompt: {error}") from error


class ChatText:
    """A rendered conversation, and where its texts are in it.

    Args:
        template: the checkpoint's.
        turns: the conversation; its last turn asks.
        name: the checkpoint's, for errors.

    Raises:
        PromptError: the template refuses the conversation.
        CheckpointError: the template leaves out a text, or changes one.
    """

    def __init__(self, template: ChatTemplate, turns: Sequence[Turn], name: str) -> None:
        self.rendered = template.render(_messages(turns))
        texts = [(turn, part) for turn in turns for part in turn.parts if isinstance(part, str)]
        # Sentinels take the places of the texts, so that the template's own text is known; no template holds them.
        literal, *others = _SENTINEL.split(template.render(_messages(turns, iter(range(len(texts))))))
        written = [int(number) for number in others[::2]]
        if sorted(written) != list(range(len(texts))):
            raise _changed(name)
        self.spans: list[Span] = []
        """First character of each text, and one more than the last."""
        self.asked: list[Span] = []
        """Those of the last turn."""
        users: dict[int, list[Span]] = {id(turn): [] for turn in turns if turn.role == "user"}
        for number, after in zip(written, others[1::2], strict=True):
            turn, text = texts[number]
            span = len(literal), len(literal) + len(text)
            self.spans.append(span)
            if turn is turns[-1]:
                self.asked.append(span)
            if id(turn) in users:
                users[id(turn)].append(span)
            literal += text + after
        self.users = list(users.values())
        """Those of each turn of the user."""
        if literal != self.rendered:
            raise _changed(name)


def _messages(turns: Sequence[Turn], numbers: Iterator[int] | None = None) -> list[dict[str, Any]]:
    """The turns as a template takes them; with ``numbers``, each text is replaced by a numbered sentinel."""

    def part_of(part: str | Visual) -> dict[str, str]:
        if isinstance(part, Visual):
            return {"type": part.kind}
        return {"type": "text", "text": part if numbers is None else f"\ue000{next(numbers)}\ue001"}

    return [{"role": turn.role, "content": [part_of(part) for part in turn.parts]} for turn in turns]


def _changed(name: str) -> CheckpointError:
    return CheckpointError(f"{name}: the chat template does not hold every text of the prompt as it stands")


def _to_json(value: Any, indent: int | None = None, **options: Any) -> str:
    # Jinja's own filter escapes HTML characters.
    return json.dumps(value, ensure_ascii=False, indent=indent, **options)


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)
