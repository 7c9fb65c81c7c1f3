"""Plug-ins: backends, pruners and video readers are entry points.

A plug-in is imported when its name is used, and is then compared with the interface of its group.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import entry_points
from types import FunctionType
from typing import Any, Literal, get_args

from pvlm.errors import ConfigError, ModelError
from pvlm.redaction import shown

Group = Literal["pvlm.backends", "pvlm.pruners", "pvlm.video_readers"]
GROUPS: tuple[Group, ...] = get_args(Group)
OURS = ("pvlm.", "pvlm_backends.")


@dataclass(frozen=True)
class Interface:
    """What the class of a plug-in must have. ``arguments``: those it is called with, None where it is not called.

    ``methods``: positional arguments by name; ``attributes``: types by name. ``factory``: a function may stand for the
    class, and returns the plug-in.
    """

    arguments: int | None
    methods: Mapping[str, int]
    attributes: Mapping[str, type] = field(default_factory=dict)
    factory: bool = False


INTERFACES: Mapping[str, Interface] = {
    "pvlm.backends": Interface(None, {"processor": 1, "load": 2}),
    "pvlm.pruners": Interface(0, {"select": 4}, {"name": str, "needs_states": bool, "needs_attention": bool}),
    "pvlm.video_readers": Interface(1, {"read": 1, "finish": 0}, factory=True),
}
"""`pvlm_protocols.backend.Backend`, `pvlm.speculation.pruning.Pruner` and `pvlm.video.readers.VideoReader`."""


@cache
def load_plugin(group: Group, name: str) -> Any:
    """The class registered as ``name`` in ``group``, or an import path ``module:Class``. Imports nothing else.

    Raises ConfigError if the name is unknown (with the known names) or two packages claim it. Raises ModelError if the
    class cannot be imported, or is no plug-in of this group.
    """
    value = name if ":" in name else _registered(group, name)
    what = f"plug-in '{name}' in group {group}" + ("" if value == name else f" ({value})")
    module, _, attribute = value.partition(":")
    try:
        found: Any = importlib.import_module(module)
        for part in attribute.split("."):
            found = getattr(found, part)
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        missing = f"needs the package '{package}', which is not installed (pip install {package})"
        raise ModelError(f"{what} {missing}") from error
    except (Exception, SystemExit) as error:  # a package may fail in any way
        raise ModelError(f"{what} cannot be imported: {type(error).__name__}: {error}") from error
    if problem := _problem(found, INTERFACES[group]):
        raise ModelError(f"{what} is no plug-in of this group: {problem}")
    return found


def check_plugin(group: Group, name: str) -> None:
    """Load a plug-in of another package, so that its errors come early. Ours are imported by the process that needs
    them, for some import torch or a video library. Raises as `load_plugin`.
    """
    if ":" in name or not _registered(group, name).startswith(OURS):
        load_plugin(group, name)


def plugin_names(group: str) -> list[str]:
    """Names registered in a group."""
    return sorted({point.name for point in entry_points(group=group)})


def _registered(group: str, name: str) -> str:
    """The import path that is registered as ``name``."""
    found = sorted({f"{point.module}:{point.attr}" for point in entry_points(group=group, name=name)})
    if not found:
        raise ConfigError(f"there is no plug-in '{name}' in group {group}: use one of {', '.join(plugin_names(group))}")
    if len(found) > 1:
        raise ConfigError(
            f"plug-in '{name}' in group {group} is claimed more than once ({', '.join(found)}): uninstall one of the "
            "packages"
        )
    return found[0]


def _problem(plugin: Any, interface: Interface) -> str:
    """What keeps a class from being a plug-in; empty if nothing does."""
    factory = interface.factory and isinstance(plugin, FunctionType)
    if not isinstance(plugin, type) and not factory:
        return f"it is {shown(plugin)}, not a class"
    if interface.arguments is not None and not _takes(plugin, interface.arguments):
        return f"the {'function' if factory else 'class'} must be callable with {_arguments(interface.arguments)}"
    if factory:  # what it returns is known only with a file
        return ""
    for name, kind in interface.attributes.items():
        if not isinstance(value := getattr(plugin, name, None), kind):
            return f"it needs {name}, a {kind.__name__}" + ("" if value is None else f", not {shown(value)}")
    for name, count in interface.methods.items():
        method = inspect.getattr_static(plugin, name, None)
        if method is None or not callable(getattr(plugin, name)):
            return f"it has no method {name}"
        bound = isinstance(method, classmethod | staticmethod)
        if not _takes(getattr(plugin, name), count if bound else count + 1):
            return f"{name} must be callable with {_arguments(count)}"
    return ""


def _takes(function: Any, count: int) -> bool:
    try:
        inspect.signature(function).bind(*[None] * count)
    except TypeError:
        return False
    except ValueError:  # a class in C has no signature
        return True
    return True


def _arguments(count: int) -> str:
    return "no arguments" if count == 0 else f"{count} argument{'s'[: count > 1]}"
