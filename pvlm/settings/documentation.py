"""Field docs in ``help()``: the text after each field of a struct, which Python itself drops."""

from __future__ import annotations

import ast
import inspect
import sys
from textwrap import indent
from typing import TypeVar

import msgspec

from pvlm.settings.validation import accepted

Struct = TypeVar("Struct", bound=msgspec.Struct)


def documented(kind: type[Struct]) -> type[Struct]:
    """Class decorator: ``__doc__`` lists the fields too, each with its default, its values and its own text."""
    setattr(kind, "__doc__", _FieldDocs(inspect.cleandoc(kind.__doc__ or "")))  # noqa: B010
    return kind


class _FieldDocs:
    """A ``__doc__`` that is written when it is read, for reading the source takes milliseconds."""

    def __init__(self, summary: str) -> None:
        self._summary = summary

    def __get__(self, instance: object, kind: type[msgspec.Struct]) -> str:
        lines = [self._summary, "", "Fields:"]
        texts = field_texts(kind)
        for field in msgspec.structs.fields(kind):
            default = "" if field.required else f" = {field.default!r}"
            lines.append(f"    {field.name}{default}: {accepted(kind, field.name)}")
            if text := texts[field.name]:
                lines.append(indent(text, " " * 8))
        return "\n".join(lines)


def field_texts(kind: type[msgspec.Struct]) -> dict[str, str]:
    """The text after each field in the source, empty where there is none."""
    found: dict[str, str] = {}
    for part in reversed(kind.__mro__):
        if issubclass(part, msgspec.Struct) and part is not msgspec.Struct:
            found |= _written(part)
    return {name: found.get(name, "") for name in kind.__struct_fields__}


def _written(kind: type) -> dict[str, str]:
    try:
        tree = ast.parse(inspect.getsource(sys.modules[kind.__module__]))
    except (OSError, TypeError):  # installed without its source
        return {}
    body = next((node.body for node in tree.body if isinstance(node, ast.ClassDef) and node.name == kind.__name__), [])
    found = {}
    for node, after in zip(body, [*body[1:], ast.Pass()], strict=True):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            told = after.value.value if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant) else ""
            found[node.target.id] = inspect.cleandoc(str(told))
    return found
