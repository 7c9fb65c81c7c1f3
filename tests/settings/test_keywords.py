"""Keywords of the engine: their types are those of the structs, and a type checker refuses a misspelt one."""

from __future__ import annotations

import os
import pydoc
import subprocess
import sys
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import msgspec
import pytest

from pvlm import AnswerOptions, Engine, EngineConfig
from pvlm.settings.documentation import field_texts
from pvlm.settings.keywords import AnswerKeywords, EngineKeywords

ROOT = Path(__file__).parents[2]
ALIASES = {"max_new_tokens": "max_tokens"}
PATHS = {"target", "draft", "keys"}


def alternatives(hint: Any) -> set[Any]:
    """The types of a field, without bounds: those of a union, and the values of a Literal, one by one."""
    if get_origin(hint) in (Union, UnionType):
        return set().union(*(alternatives(part) for part in get_args(hint)))
    return set(get_args(hint)) if get_origin(hint) is Literal else {hint}


def as_keyword(name: str, hint: Any) -> set[Any]:
    """What a keyword may be, where the struct's field is ``hint``: any sequence for a tuple, a path for its text."""
    found = alternatives(hint)
    if tuple[str, ...] in found:
        return {Sequence[str]}  # a str is one too
    if tuple[int, ...] in found:
        found = found - {tuple[int, ...]} | {Sequence[int]}
    return found | {PathLike[str]} if name in PATHS else found


@pytest.mark.parametrize(("struct", "keywords"), [(EngineConfig, EngineKeywords), (AnswerOptions, AnswerKeywords)])
def test_keywords_are_the_fields_of_the_structs(struct: type[msgspec.Struct], keywords: type) -> None:
    fields = get_type_hints(struct)
    found = get_type_hints(keywords)
    assert set(found) - set(ALIASES) == set(struct.__struct_fields__)
    for name, hint in found.items():
        assert alternatives(hint) == as_keyword(name, fields[ALIASES.get(name, name)]), name


def test_a_type_checker_refuses_misspelt_keywords_and_wrong_values(tmp_path: Path) -> None:
    """The engine's own file is checked with a program; what else is imported counts as unknown, which is fast."""
    pytest.importorskip("mypy")
    program = tmp_path / "program.py"
    program.write_text(
        "from pvlm.engine import Engine\n"
        "engine = Engine.create(max_sessions=2, target='x', on_progress=print)\n"
        "engine.stream('clip.mp4', '?', max_tokens=4, stop=['x'], window='auto')\n"
        "engine.stream('clip.mp4', '?', max_tokns=4)\n"
        "engine.answer_sync('clip.mp4', '?', seed='abc')\n"
        "Engine.create(windw=3)\n"
        "Engine.from_pretrained('x', draft='y', method='fast')\n"
    )
    command = [sys.executable, "-m", "mypy", "--follow-imports=skip", "--no-error-summary", "--hide-error-context"]
    files = ["pvlm/engine.py", "pvlm/settings/keywords.py", str(program)]
    config = tmp_path / "mypy.ini"
    config.write_text("[mypy]\nexplicit_package_bases = True\nnamespace_packages = True\n")
    done = subprocess.run(
        [*command, "--config-file", config, "--cache-dir", ROOT / "build" / "mypy", *files],
        capture_output=True, text=True, cwd=ROOT, env={**os.environ, "MYPYPATH": str(ROOT)},
    )  # fmt: skip
    said = [line.partition(":")[2] for line in done.stdout.splitlines() if "program.py" in line and " error: " in line]
    assert [line.partition(":")[0] for line in said] == ["4", "5", "6", "7"], done.stdout + done.stderr
    assert '"max_tokns"' in said[0]
    assert '"windw"' in said[2]


# ---- help() -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("struct", [EngineConfig, AnswerOptions])
def test_help_documents_every_field(struct: type[msgspec.Struct]) -> None:
    said = pydoc.plain(pydoc.render_doc(struct)).replace("\n |  ", "\n")
    for field in msgspec.structs.fields(struct):
        assert f"\n    {field.name} = {field.default!r}: " in said
    texts = field_texts(struct)
    silent = {name for name, text in texts.items() if not text}
    assert silent <= set(EngineConfig.__struct_fields__) & set(AnswerOptions.__struct_fields__)  # "as in EngineConfig"
    assert struct is AnswerOptions or not silent
    assert "prune_ratio = 0.5: a float (at least 0 and less than 1)\n        Share of the" in str(EngineConfig.__doc__)


def test_help_of_the_calls_names_the_keywords() -> None:
    for call, keywords in [(Engine.create, EngineKeywords), (Engine.stream, AnswerKeywords)]:
        assert keywords.__name__ in str(call.__annotations__)
