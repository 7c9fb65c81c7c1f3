"""A setting or an option that an error names exists."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from pvlm import AnswerOptions, EngineConfig
from pvlm.cli import main

ROOT = Path(__file__).parents[2]
NAMED = re.compile(r"\(([a-z]+(?:_[a-z]+)+)\)|\b([a-z]+(?:_[a-z]+)+)=")
"""``(close_timeout_s)`` and ``max_tokens=``, as errors name them."""
SETTINGS = {*EngineConfig.__struct_fields__, *AnswerOptions.__struct_fields__}


def texts_of_errors(path: Path) -> Iterator[str]:
    """The literal parts of what is raised, and of what is given as a reason."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Raise | ast.Return) or (isinstance(node, ast.Call) and _loses(node)):
            for part in ast.walk(node):
                if isinstance(part, ast.Constant) and isinstance(part.value, str):
                    yield part.value


def _loses(call: ast.Call) -> bool:
    return ast.unparse(call.func).endswith(("_lose", "Loss"))


def test_errors_name_settings_that_exist() -> None:
    files = (ROOT / "pvlm").rglob("*.py")
    named = [
        (str(path.relative_to(ROOT)), name)
        for path in files
        if "bench" not in path.parts
        for text in texts_of_errors(path)
        for match in NAMED.finditer(text)
        if (name := match[1] or match[2])
    ]
    assert {"decode_timeout_s", "num_frames", "start_timeout_s"} < {name for _, name in named}
    assert [(path, name) for path, name in named if name not in SETTINGS] == []


def test_the_command_sets_the_limit_that_an_error_names(capfd: pytest.CaptureFixture[str]) -> None:
    """``decode_timeout_s``, when reading a video takes longer."""
    clip = ROOT / "pvlm" / "bundled" / "clips" / "two-scenes.mp4"
    assert main(["answer", str(clip), "What?", "--decode-timeout", "0"]) == 1
    assert "decode_timeout_s is 0.0: it must be above 0" in capfd.readouterr().err
