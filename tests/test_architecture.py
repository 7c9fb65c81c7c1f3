"""The house: which room may import which. The imports of every module are read, also those inside functions."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = {"pvlm": ROOT, "pvlm_backends": ROOT / "backends", "pvlm_protocols": ROOT / "protocols"}
GROUND = {"children", "config", "errors", "log", "plugins", "redaction", "results", "settings"}
LOOSE_MODULES = 8
"""At the top of ``pvlm/``, but for ``__init__`` and ``__main__``."""
LINES = 400
"""The limit for a file."""

# A room may import what stands after it, and whatever the rooms after it may import; GROUND and the protocols always.
ARROWS: dict[str, set[str]] = {
    "speculation": set(),
    "transports": set(),
    "video": set(),
    "telemetry": set(),
    "coordination": {"speculation"},
    "actors": {"speculation", "transports"},
    "workers": {"actors"},
    "runtime": {"workers", "coordination", "telemetry", "video"},
    "answer": {"runtime"},
    "engine": {"answer"},
    "trace": {"engine"},
    "bench": {"engine", "trace", "pvlm_backends"},  # measures models by themselves too
    "serving": {"engine", "trace"},
    "cli": {"bench", "serving"},
}

EXCEPTIONS = {
    # A recorder receives every event and command, so its interface names their types. It holds no coordinator.
    ("pvlm.telemetry.recorder", "pvlm.coordination.events"),
    # The report of an answer reads the records that the coordinator gives among its commands.
    ("pvlm.telemetry.reporter", "pvlm.coordination.events"),
}

LONG_FILES: set[str] = set()
"""Files over the limit that are known. This list only shrinks."""


def module_name(path: Path, root: Path) -> str:
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {
    module_name(path, root): path
    for package, root in PACKAGES.items()
    for path in sorted((root / package).rglob("*.py"))
}


def absolute(name: str, node: ast.ImportFrom) -> str:
    """The module that ``from ... import`` names, also where it is relative to the importing module."""
    if node.level == 0:
        assert node.module is not None
        return node.module
    parts = name.split(".")
    above = node.level - (FILES[name].name == "__init__.py")
    return ".".join([*parts[: len(parts) - above], *([node.module] if node.module else [])])


def imported(name: str) -> set[str]:
    """The modules of this repository that a module names in its imports."""
    found = set()
    for node in ast.walk(ast.parse(FILES[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            source = absolute(name, node)
            # ``from package import x``: x is a module of the package, or a name that the package holds
            children = {f"{source}.{alias.name}" for alias in node.names}
            found |= {child if child in FILES else source for child in children}
    return {module for module in found if module in FILES} - {name}


IMPORTS = {name: imported(name) for name in FILES}
IMPORTS["pvlm"] = set()  # it imports its public names when they are used


def room(name: str) -> str:
    """``pvlm.answer.stream`` -> ``answer``; of another package its name."""
    parts = name.split(".")
    return parts[1] if parts[0] == "pvlm" and len(parts) > 1 else parts[0]


def reachable(start: str) -> set[str]:
    found: set[str] = set()
    waiting = {start}
    while waiting:
        one = waiting.pop()
        if one not in found:
            found.add(one)
            waiting |= ARROWS.get(one, set())
    return found


def allowed(name: str) -> set[str]:
    """The rooms that a module may import."""
    here = room(name)
    if here == "pvlm_protocols":
        return {here}
    if here == "pvlm_backends":
        return {here, "pvlm_protocols"}
    if here == "pvlm":
        return set()
    if here in GROUND:
        return {*GROUND, "pvlm_protocols"}
    if here == "__main__":
        return {"cli"}
    assert here in ARROWS, f"{name} stands in a room that the architecture does not know"
    public_version = {"pvlm"} if here in ("cli", "serving") else set()
    return {*reachable(here), *GROUND, *public_version, "pvlm_protocols"}


def against_the_arrows() -> set[tuple[str, str]]:
    return {
        (name, target) for name, targets in IMPORTS.items() for target in targets if room(target) not in allowed(name)
    }


def test_imports_follow_the_arrows() -> None:
    assert against_the_arrows() - EXCEPTIONS == set()


def test_the_lists_of_exceptions_hold_nothing_that_is_mended() -> None:
    assert EXCEPTIONS - against_the_arrows() == set()
    assert {path for path in LONG_FILES if not (ROOT / path).exists() or line_count(ROOT / path) <= LINES} == set()


def test_the_recorder_uses_no_more_than_the_types_of_events() -> None:
    tree = ast.parse(FILES["pvlm.telemetry.recorder"].read_text(encoding="utf-8"))
    names = {
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module == "pvlm.coordination.events"
        for alias in node.names
    }
    assert names == {"Command", "Event"}


def test_no_modules_import_each_other_in_a_circle() -> None:
    settled: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join([*path[path.index(name) :], name])
        if name not in settled:
            for target in sorted(IMPORTS[name]):
                visit(target, (*path, name))
            settled.add(name)

    for name in FILES:
        visit(name, ())


def test_few_modules_stand_loose() -> None:
    loose = {path.stem for path in (ROOT / "pvlm").glob("*.py")}
    assert loose >= {"__init__", "__main__"}
    assert len(loose - {"__init__", "__main__"}) <= LOOSE_MODULES, sorted(loose)


def line_count(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


@pytest.mark.parametrize("package", PACKAGES)
def test_no_file_is_over_the_limit(package: str) -> None:
    long = {
        str(path.relative_to(ROOT))
        for name, path in FILES.items()
        if name.split(".")[0] == package and line_count(path) > LINES
    }
    assert long - LONG_FILES == set()
