"""Pages that list what the code has: each name is on its page."""

from __future__ import annotations

import re

from pvlm.config import AnswerOptions, EngineConfig
from pvlm.telemetry.metrics import METRICS
from tests.style.tree import ROOT, files


def page(name: str) -> str:
    return (ROOT / "docs" / name).read_text(encoding="utf-8")


def test_every_metric_is_on_its_page() -> None:
    text = page("reference/operations.md")
    assert [metric.name for metric in METRICS if f"`{metric.name}`" not in text] == []


def test_every_setting_is_on_its_page() -> None:
    text = page("reference/configuration.md")
    names = {*EngineConfig.__struct_fields__, *AnswerOptions.__struct_fields__}
    assert sorted(name for name in names if f"`{name}`" not in text) == []


def test_every_table_has_a_sentence_before_it() -> None:
    bare = []
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        lines = path.read_text(encoding="utf-8").split("\n")
        for number, line in enumerate(lines):
            starts = line.startswith("|") and not lines[number - 1].startswith("|")
            before = next((text for text in reversed(lines[:number]) if text.strip()), "#")
            if starts and before.startswith(("#", "|", "```")):
                bare.append(f"{path.relative_to(ROOT)}:{number + 1}")
    assert not bare


def test_links_outside_the_site_lead_somewhere() -> None:
    """`make docs` checks the links between the pages of the site."""
    dead = []
    for path in files():
        if path.suffix == ".md" and (ROOT / "docs") not in path.parents:
            for link in re.findall(r"\]\(([^)#]+)", path.read_text(encoding="utf-8")):
                if "://" not in link and not (path.parent / link).exists():
                    dead.append(f"{path.relative_to(ROOT)}: {link}")
    assert not dead
