"""Entry points: the one way in which backends, pruners and video readers are found."""

from __future__ import annotations

from functools import cache
from importlib.metadata import entry_points
from typing import Any

from pvlm.errors import ModelError


@cache
def load_plugin(group: str, name: str) -> Any:
    """The class registered as ``name`` in ``group``. Nothing else of the group is imported.

    Raises ModelError if there is none (with the known names), if two packages claim the name, or if its import fails.
    """
    found = {(point.name, point.value): point for point in entry_points(group=group, name=name)}
    if not found:
        raise ModelError(f"no plug-in '{name}' in group {group}: known are {', '.join(plugin_names(group)) or 'none'}")
    if len(found) > 1:
        claims = ", ".join(sorted(value for _, value in found))
        raise ModelError(
            f"plug-in '{name}' in group {group} is claimed more than once ({claims}): uninstall one of the packages"
        )
    (point,) = found.values()
    try:
        return point.load()
    except ImportError as error:
        raise ModelError(f"plug-in '{name}' ({point.value}) cannot be imported: {error}") from error


def plugin_names(group: str) -> list[str]:
    """Names registered in a group."""
    return sorted({point.name for point in entry_points(group=group)})
