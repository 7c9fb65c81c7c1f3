"""Field docs in ``help()``: the text after each field of a struct, which Python itself drops."""

from __future__ import annotations

import inspect
import re
import sys
from textwrap import indent
from typing import TypeVar

import msgspec

from pvlm.settings.validation import accepted

Struct = TypeVar("Struct", bound=msgspec.Struct)

_CLASS = r"^class {name}\(.*?(?=^\S|\Z)"
_FIELD = re.compile(r'^    (\w+): [^\n]*(?:\n    """(.*?)""")?', re.MULTILINE | re.DOTALL)


def documented(kind: type[Struct]) -> type[Struct]:
    """Class decorator: ``__doc__`` lists the fields too, each with its default, its values and its own text."""
    lines = [inspect.cleandoc(kind.__doc__ or ""), "", "Fields:"]
    texts = field_texts(kind)
    for field in msgspec.structs.fields(kind):
        default = "" if field.required else f" = {field.default!r}"
        lines.append(f"    {field.name}{default}: {accepted(kind, field.name)}")
        if text := texts[field.name]:
            lines.append(indent(text, " " * 8))
    kind.__doc__ = "\n".join(lines)
    return kind


def field_texts(kind: type[msgspec.Struct]) -> dict[str, str]:
    """The text after each field in the source, empty where there is none."""
    found: dict[str, str] = {}
    for part in reversed(kind.__mro__):
        if issubclass(part, msgspec.Struct) and part is not msgspec.Struct:
            found |= _written(part)
    return {name: found.get(name, "") for name in kind.__struct_fields__}


def _written(kind: type) -> dict[str, str]:
    try:
        source = inspect.getsource(sys.modules[kind.__module__])
    except (OSError, TypeError):  # installed without its source
        return {}
    body = re.search(_CLASS.format(name=kind.__name__), source, re.MULTILINE | re.DOTALL)
    return {name: inspect.cleandoc(text) for name, text in _FIELD.findall(body.group() if body else "")}
