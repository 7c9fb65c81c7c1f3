"""Texts that readers can take in: no refused phrases, a short README, narrow pages, short files.

`allowed.toml` lists what the tree still has too much of. New cases fail, and so does a number that is too large: the
list follows the tree down. `python -m tests.style.count` prints the list that matches.
"""

from __future__ import annotations

import pytest

from tests.style.tree import ROOT, allowed, counts, refused, wide_lines

README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("The token behind the rejection.", ["behind the"]),
        ("# drafted tokens\n# behind it", ["tokens behind", "behind it"]),
        ("It is told\n    of the loss.", ["told of"]),
        ('"""A setting that cannot be."""', ["that cannot be"]),
        ("A video that cannot be read.", []),
        ("Whoever asks.", ["Whoever"]),
        ("// the answer goes on\n// with it", ["goes on with"]),
        ("It is held against the limits.", ["held against"]),
        ("It waits until it is there.", ["until it is there"]),
        ("There is one behind: fine, as is 'is there'.", []),
    ],
)
def test_refused_phrases_are_found(text: str, words: list[str]) -> None:
    assert sorted(found for _, found, _ in refused(text)) == sorted(words)


def test_a_phrase_is_reported_with_its_line() -> None:
    assert refused("one\n\n# two\n# comes behind\n# the three") == [(4, "behind the", "after")]


def test_wide_lines_are_found_outside_code_and_tables() -> None:
    long = "word " * 30
    assert wide_lines(f"short\n{long}\n```\n{long}\n```\n| {long} |\n# {long}\n- {long}") == [2, 8]


@pytest.mark.parametrize("kind", ["phrases", "wide", "lines"])
def test_the_tree_has_what_is_allowed(kind: str) -> None:
    found, listed = counts()[kind], allowed()[kind]
    different = {
        path: f"{found.get(path, 0)} found, {listed.get(path, 0)} allowed"
        for path in sorted(found.keys() | listed.keys())
        if found.get(path, 0) != listed.get(path, 0)
    }
    assert not different, (
        "mend new cases (`python -m tests.style.count PATH` shows them); lower the numbers in tests/style/allowed.toml"
    )


def test_readme_is_short() -> None:
    assert README.count("\n") <= 150
    assert len(README.split()) <= 900


def test_readme_begins_with_a_picture_and_has_both_commands() -> None:
    first_screen = "\n".join(README.split("\n")[:12])
    assert "![" in first_screen
    assert "make demo" in README
    assert "make test" in README
