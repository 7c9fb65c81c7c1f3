"""Checks of settings and options: known names, types and bounds, each with an error that names the setting."""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Mapping
from functools import cache
from typing import Any, TypeVar, get_type_hints

import msgspec
from msgspec import inspect
from msgspec.inspect import FloatType, IntType

from pvlm.errors import ConfigError, OptionError
from pvlm.redaction import shown

Settings = TypeVar("Settings", bound=msgspec.Struct)
SettingsError = type[ConfigError] | type[OptionError]


def build(kind: type[Settings], values: Mapping[str, Any], what: str, error: SettingsError) -> Settings:
    """A struct from keywords. Raises ``error`` for an unknown name, and what `check_fields` raises.

    ``what``: what a name stands for, in errors.
    """
    known = kind.__struct_fields__
    for key in values:
        if key not in known:
            close = difflib.get_close_matches(str(key), known, 1)
            hint = f"did you mean '{close[0]}'?" if close else f"known: {', '.join(known)}"
            raise error(f"unknown {what} {shown(key)}: {hint}")
    return kind(**values)


def check_fields(settings: msgspec.Struct, error: SettingsError) -> None:
    """Check the type and the bounds of each field, and replace it by a plain value: a path by its text, a number of
    numpy by an int or float, a list by a tuple. For ``__post_init__``. Raises ``error`` for the first invalid field.
    """
    for name, field in _fields(type(settings)).items():
        given = getattr(settings, name)
        if given is field.default:
            continue
        value = _plain(given)
        if _out_of_bounds(value, field.type):
            raise error(f"{name} is {shown(value)}: it must be {_bounds_in_words(field.type)}")
        try:
            value = msgspec.convert(value, field.hint)
        except (msgspec.ValidationError, ValueError, TypeError, OverflowError):
            raise error(f"{name} is {shown(given)}: it must be {_in_words(field.type)}") from None
        msgspec.structs.force_setattr(settings, name, value)


def accepted(kind: type[msgspec.Struct], name: str) -> str:
    """What a field may be, in words: "an int (from 0 to 9) or None"."""
    return _in_words(_fields(kind)[name].type)


class _Field(msgspec.Struct, frozen=True):
    type: inspect.Type
    hint: Any
    default: Any


@cache
def _fields(kind: type[msgspec.Struct]) -> dict[str, _Field]:
    struct = inspect.type_info(kind)
    assert isinstance(struct, inspect.StructType)
    hints = get_type_hints(kind, include_extras=True)
    return {field.name: _Field(field.type, hints[field.name], field.default) for field in struct.fields}


def _plain(value: Any) -> Any:
    try:
        if isinstance(value, os.PathLike):
            return os.fsdecode(value)
        if hasattr(value, "tolist"):  # a number or an array of numpy or torch
            return value.tolist()
    except Exception:  # it is refused by its type
        pass
    return value


def _alternatives(kind: inspect.Type) -> tuple[inspect.Type, ...]:
    return kind.types if isinstance(kind, inspect.UnionType) else (kind,)


def _out_of_bounds(value: object, kind: inspect.Type) -> bool:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False  # None, "auto", or a wrong type, which `msgspec.convert` refuses
    for one in _alternatives(kind):
        if isinstance(one, IntType | FloatType):
            least, above, most, below = one.ge, one.gt, one.le, one.lt
            too_small = (least is not None and not value >= least) or (above is not None and not value > above)
            too_large = (most is not None and not value <= most) or (below is not None and not value < below)
            return too_small or too_large
    return False


def _bounds_in_words(kind: inspect.Type) -> str:
    words = []
    for one in _alternatives(kind):
        if isinstance(one, inspect.LiteralType):
            words += [repr(value) for value in one.values]
        elif isinstance(one, IntType | FloatType):
            words.append(_range(one))
    return " or ".join(words)


def _in_words(kind: inspect.Type) -> str:
    words = []
    for one in _alternatives(kind):
        match one:
            case inspect.LiteralType(values=values):
                words += [repr(value) for value in values]
            case IntType() | FloatType():
                name = "an int" if isinstance(one, IntType) else "a float"
                bounded = any(limit is not None for limit in (one.ge, one.gt, one.le, one.lt))
                words.append(f"{name} ({_range(one)})" if bounded else name)
            case inspect.VarTupleType(item_type=item):
                words.append(f"a list of {_in_words(item).split()[-1]}")
            case inspect.NoneType():
                words.append("None")
            case _:
                words.append(f"a {type(one).__name__.removesuffix('Type').lower()}")
    return " or ".join(sorted(words, key=lambda word: word == "None"))


def _range(bounds: IntType | FloatType) -> str:
    least = f"at least {bounds.ge}" if bounds.ge is not None else f"above {bounds.gt}"
    if bounds.le == sys.float_info.max:
        return f"finite and {least}"
    if bounds.ge is not None and bounds.le is not None:
        return f"from {bounds.ge} to {bounds.le}"
    if bounds.le is not None:
        return f"{least} and at most {bounds.le}"
    return least if bounds.lt is None else f"{least} and less than {bounds.lt}"
