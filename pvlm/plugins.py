"""Plug-ins: backends, pruners and video readers are entry points."""

from __future__ import annotations

from functools import cache
from importlib.metadata import entry_points
from typing import Any

from pvlm.errors import ConfigError


@cache
def load_plugin(group: str, name: str) -> Any:
    """The class registered as ``name`` in ``group``. Nothing else of the group is imported.

    Raises ConfigError if the name is unknown (with the known names) or two packages claim it. Raises ImportError if the
    class cannot be imported.
    """
    found = {(point.name, point.value): point for point in entry_points(group=group, name=name)}
    if not found:
        raise ConfigError(f"there is no plug-in '{name}' in group {group}: use one of {', '.join(plugin_names(group))}")
    if len(found) > 1:
        claims = ", ".join(sorted(value for _, value in found))
        raise ConfigError(
            f"plug-in '{name}' in group {group} is claimed more than once ({claims}): uninstall one of the packages"
        )
    (point,) = found.values()
    return point.load()


def plugin_names(group: str) -> list[str]:
    """Names registered in a group."""
    return sorted({point.name for point in entry_points(group=group)})
