"""The command reference: each command's ``--help``, taken from its parser while the site is built."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from typing import Any
from unittest import mock

PAGE = "reference/commands.md"
PLACE = "<!-- commands -->"
COLUMNS = "84"
"""As wide as a page."""


def on_page_markdown(markdown: str, *, page: Any, **context: object) -> str:
    """Put the help of every command in place of the marker."""
    if page.file.src_uri != PAGE:
        return markdown
    from pvlm.cli import build_parser

    with mock.patch.dict(os.environ, COLUMNS=COLUMNS):
        sections = [
            f"## {name}\n\n```text\n{parser.format_help()}```" for name, parser in commands("pvlm", build_parser())
        ]
    return markdown.replace(PLACE, "\n\n".join(sections))


def commands(name: str, parser: argparse.ArgumentParser) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """A parser and those of its commands, with the words that call them."""
    yield name, parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for word, command in action.choices.items():
                yield from commands(f"{name} {word}", command)
