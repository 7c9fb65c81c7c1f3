"""The command reference: each command's ``--help``, taken from the command while the site is built."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import redirect_stdout
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
    sections = [f"## {name}\n\n```text\n{help_text(name)}\n```" for name in commands()]
    return markdown.replace(PLACE, "\n\n".join(sections))


def help_text(name: str) -> str:
    """What ``NAME --help`` prints."""
    from pvlm.cli import main

    with mock.patch.dict(os.environ, COLUMNS=COLUMNS), redirect_stdout(io.StringIO()) as printed:
        main([*name.split()[1:], "--help"])
    return "\n".join(line.rstrip() for line in printed.getvalue().splitlines()).strip("\n")


def commands() -> Iterator[str]:
    """The words that call each command."""
    from typer.main import get_command

    from pvlm.cli.application import app

    waiting: list[tuple[str, Any]] = [("pvlm", get_command(app))]
    while waiting:
        name, command = waiting.pop(0)
        yield name
        waiting[:0] = [(f"{name} {word}", one) for word, one in getattr(command, "commands", {}).items()]
