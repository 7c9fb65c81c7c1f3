"""The plug-ins' modules import each other in one direction, and never the runtime."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pvlm_backends

ROOT = Path(pvlm_backends.__file__).parent
ORDER = (
    "attention",
    "norm",
    "options",
    "placement",
    "processing",
    "weights",
    "checkpoint",
    "prefix",
    "early_states",
    "session",
    "branches",
    "families",
    "raw",
    "native",
    "hf",
    "emulated",
)
"""Folders and loose modules; each may import earlier ones only."""


def imports(path: Path) -> Iterator[tuple[str, ...]]:
    """Absolute names, split at the dots; also those of imports inside functions and for type checkers."""
    package = ("pvlm_backends", *path.relative_to(ROOT).parts[:-1])
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (tuple(alias.name.split(".")) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else ()
            yield (*base, *(node.module or "").split("."))


def test_every_room_is_in_the_order() -> None:
    rooms = {path.stem for path in ROOT.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert rooms - {"__init__"} == set(ORDER)


def test_imports_point_one_way() -> None:
    for path in ROOT.rglob("*.py"):
        room = path.relative_to(ROOT).parts[0].removesuffix(".py")
        for name in imports(path):
            assert name[0] != "pvlm", path
            if name[0] == "pvlm_backends" and room in ORDER and name[1] != room:
                assert ORDER.index(name[1]) < ORDER.index(room), f"{path} imports {'.'.join(name)}"
