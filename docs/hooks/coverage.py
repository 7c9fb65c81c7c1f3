"""The site's check of its reference: each public name has a docstring and an entry; otherwise the build fails."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator

import griffe

MODULES = ("pvlm", "pvlm.trace", "pvlm.telemetry.metrics", "pvlm.telemetry.prometheus", "pvlm_protocols.backend")
"""Modules whose public names the reference covers."""
PATHS = (".", "protocols", "backends")

_log = logging.getLogger("mkdocs.plugins.coverage")
_anchors: set[str] = set()


def on_page_content(html: str, **context: object) -> str:
    """Collect the names that have an entry."""
    _anchors.update(re.findall(r'id="([a-z]\w*\.[\w.]+)"', html))
    return html


def on_post_build(**context: object) -> None:
    """Warn about each gap; with ``strict`` a warning fails the build."""
    for name, value in public_names():
        if not value.has_docstring:
            _log.warning("%s (%s) has no docstring", name, value.canonical_path)
        if name not in _anchors and value.canonical_path not in _anchors:
            _log.warning("%s has no entry in docs/reference", name)


def public_names() -> Iterator[tuple[str, griffe.Object]]:
    """Public names of `MODULES` and the public methods of their classes, with what they name.

    A constant counts where its module's ``__all__`` lists it.
    """
    loader = griffe.GriffeLoader(search_paths=PATHS)
    for package in dict.fromkeys(module.partition(".")[0] for module in MODULES):
        loader.load(package, try_relative_path=False)
    loader.resolve_aliases()
    for path in MODULES:
        module = loader.modules_collection[path]
        for name, member in module.members.items():
            if name not in module.exports if module.exports is not None else name.startswith("_") or member.is_alias:
                continue
            value = member.final_target if member.is_alias else member
            if value.is_attribute and module.exports is None:
                continue
            yield f"{path}.{name}", value
            if value.is_class:
                for part in value.members.values():
                    if not part.name.startswith("_") and (part.is_function or "property" in part.labels):
                        yield f"{path}.{name}.{part.name}", part
