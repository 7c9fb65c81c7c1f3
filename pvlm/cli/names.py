"""Names that help and completion list: installed plug-ins, and what the benchmarks compare. Looked up when asked."""

from __future__ import annotations

from collections.abc import Callable
from difflib import get_close_matches
from importlib import import_module
from typing import Any

import typer

PLUGINS = {"backends": "pvlm.backends", "pruners": "pvlm.pruners", "readers": "pvlm.video_readers"}
"""Groups of entry points."""
TABLES = {
    "contenders": "pvlm.bench.methods:METHODS",
    "pairs": "pvlm.bench.pairs:PAIRS",
    "all_pairs": "pvlm.bench.sessions:NAMES",
    "scenarios": "pvlm.bench.adaptive:SCENARIOS",
    "architectures": "pvlm.bench.architectures:PAIRS",
}
"""Mappings or sequences, as ``module:NAME``."""


def names(kind: str) -> list[str]:
    """The names of a kind, a key of `PLUGINS` or `TABLES`."""
    if kind in PLUGINS:
        from pvlm.plugins import plugin_names

        return [*(["auto"] if kind == "backends" else []), *plugin_names(PLUGINS[kind])]
    module, _, table = TABLES[kind].partition(":")
    return list(getattr(import_module(module), table))


def completing(kind: str) -> Callable[[], list[str]]:
    """A completion function for typer."""
    return lambda: names(kind)


def check(kind: str) -> Callable[[Any], Any]:
    """A callback for typer that refuses an unknown name, and suggests the ones that are meant.

    A plug-in may also be given as its import path, ``module:Class``; `load_plugin` imports and checks it.
    """

    def checked(value: Any) -> Any:
        for name in [value] if isinstance(value, str) else value or []:
            if kind in PLUGINS and ":" in name:
                continue
            if name not in (known := names(kind)):
                close = get_close_matches(name, known, 1)
                hint = f"did you mean '{close[0]}'?" if close else f"use one of {', '.join(known)}"
                raise typer.BadParameter(f"there is no '{name}': {hint}")
        return value

    return checked


class Names(dict[str, str]):
    """For ``str.format_map``: each kind, in words."""

    def __missing__(self, kind: str) -> str:
        return ", ".join(names(kind))
