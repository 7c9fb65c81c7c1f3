"""What the build of the site checks by itself: public names in the reference, and the help of every command."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from tests.style.tree import ROOT

SAMPLE = '''
"""A module."""
import os

def documented():
    """Text."""

def undocumented(): ...

class Thing:
    """Text."""

    def method(self): ...

    def _private(self): ...
'''


def hook(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / "hooks" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_name_without_docstring_or_entry_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("griffe")
    (tmp_path / "sample.py").write_text(SAMPLE)
    coverage = hook("coverage")
    coverage.MODULES, coverage.PATHS = ("sample",), (str(tmp_path),)
    page = SimpleNamespace(file=SimpleNamespace(src_uri="api.md"))
    coverage.on_page_content('<h3 id="sample.documented"></h3><h3 id="sample.Thing"></h3>', page=page)
    coverage.on_post_build(config=None)
    assert sorted(record.getMessage() for record in caplog.records) == [
        "sample.Thing.method (sample.Thing.method) has no docstring",
        "sample.Thing.method has no entry in docs/reference",
        "sample.undocumented (sample.undocumented) has no docstring",
        "sample.undocumented has no entry in docs/reference",
    ]


def test_every_command_is_in_the_reference() -> None:
    commands = hook("commands")
    names = list(commands.commands())
    assert {"pvlm", "pvlm answer", "pvlm bench emulated", "pvlm keys new"} <= set(names)
    page = SimpleNamespace(file=SimpleNamespace(src_uri=commands.PAGE))
    text = commands.on_page_markdown(commands.PLACE, page=page)
    assert [line for line in text.split("\n") if line.startswith("## ")] == [f"## {name}" for name in names]
