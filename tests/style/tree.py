"""The texts of the project, and what the suite of style measures in them."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ALLOWED = Path(__file__).with_name("allowed.toml")
SUFFIXES = {".py", ".md", ".toml", ".c", ".h", ".js", ".html", ".css", ".yml", ".yaml", ".cff"}
NAMES = {"Makefile", "run"}
SKIPPED = {"build", "dist", "trace", "shared", "tests/style"}
"""Folders, from the root, that are generated, or that quote the refused phrases."""
SOURCES = ("pvlm", "backends", "protocols", "benchmarks")
"""Folders whose files stay short."""
MAX_LINES, MAX_COLUMNS = 400, 100

PHRASES = {
    r"behind (a|an|the|it|its|that|this|them|these|those|what|which|every|each|one|all)": "after",
    r"tokens behind": "tokens after",
    r"(told|tells|telling|tell) of": "reports",
    r"what [\w ]{0,20}tells": "reports",
    r"that cannot be(?! \w)": "invalid",
    r"whoever": "the caller, the process, ...",
    r"the most of everything": "the limits",
    r"cannot be looked into": "cannot be inspected",
    r"so much is chance": "this is the noise",
    r"(go|goes|going|gone|went) on with(?! on\b)": "continues",
    r"(held|hold|holds|holding) [\w ,]{0,24}against": "compared with",
    r"(until|when|once|as soon as) (it|they|one|everything|all) (is|are) there": "has arrived",
    r"(is|are) there (now|again|at once|too late|in time)": "has arrived",
}
"""Phrases that readers stumble over, as regular expressions of whole words, and what to say instead."""
_REFUSED = {re.compile(rf"\b{phrase}(?!\w)", re.IGNORECASE): instead for phrase, instead in PHRASES.items()}
_MARKER = re.compile(r"(?<!\S)(#+|//+|\*+|>|-|\|)(?!\S)")
_WIDE = re.compile(r"^\s*(\||#|<|!?\[)|https?://")


def files() -> Iterator[Path]:
    """Every file of the project that people read as text."""
    for folder, folders, names in os.walk(ROOT):
        here = Path(folder).relative_to(ROOT)
        folders[:] = sorted(
            name
            for name in folders
            if (here / name).as_posix() not in SKIPPED and (not name.startswith(".") or name == ".ci")
        )
        for name in sorted(names):
            if name in NAMES or Path(name).suffix in SUFFIXES:
                yield Path(folder) / name


def refused(text: str) -> list[tuple[int, str, str]]:
    """Refused phrases of a text, also across the end of a line: line, the words, and what to say instead."""
    lines = [_MARKER.sub("", line).split() for line in text.split("\n")]
    line_of = [number for number, words in enumerate(lines, 1) for _ in words]
    flat = " ".join(word for words in lines for word in words)
    found = [
        (line_of[flat.count(" ", 0, match.start())], match[0], instead)
        for pattern, instead in _REFUSED.items()
        for match in pattern.finditer(flat)
    ]
    return sorted(found)


def wide_lines(markdown: str) -> list[int]:
    """Numbers of lines beyond `MAX_COLUMNS`, but for code, tables, headings, and lines with a link."""
    wide, code = [], False
    for number, line in enumerate(markdown.split("\n"), 1):
        if line.lstrip().startswith("```"):
            code = not code
        elif not code and len(line) > MAX_COLUMNS and not _WIDE.search(line):
            wide.append(number)
    return wide


def counts() -> dict[str, dict[str, int]]:
    """What each file has too much of, by kind: ``phrases`` (refused ones), ``wide`` (lines), ``lines`` (of source)."""
    found: dict[str, dict[str, int]] = {"phrases": {}, "wide": {}, "lines": {}}
    for path in files():
        name, text = path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8")
        if number := len(refused(text)):
            found["phrases"][name] = number
        if path.suffix == ".md" and (number := len(wide_lines(text))):
            found["wide"][name] = number
        if name.split("/")[0] in SOURCES and path.suffix != ".md" and (number := text.count("\n")) > MAX_LINES:
            found["lines"][name] = number
    return found


def allowed() -> dict[str, dict[str, int]]:
    """The list of what is still allowed, in the form of `counts`."""
    return tomllib.loads(ALLOWED.read_text(encoding="utf-8"))
