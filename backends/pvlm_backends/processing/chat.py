"""Chat templates, rendered as transformers renders them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from pvlm_protocols.backend import CheckpointError, PromptError

from .files import read_optional_settings, read_text

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

    def render(self, content: Sequence[dict[str, str]]) -> str:
        """Render the prompt for one user message with these content parts, up to the assistant's turn.

        Raises:
            PromptError: the template refuses the message.
        """
        try:
            return self._template.render(
                messages=[{"role": "user", "content": list(content)}],
                tools=None,
                documents=None,
                add_generation_prompt=True,
                **self._special_tokens,
            )
        except TemplateError as error:
            raise PromptError(f"the chat template failed on this question: {error}") from error


def _to_json(value: Any, indent: int | None = None, **options: Any) -> str:
    # Jinja's own filter escapes HTML characters.
    return json.dumps(value, ensure_ascii=False, indent=indent, **options)


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)
