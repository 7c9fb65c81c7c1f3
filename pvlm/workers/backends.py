"""Which plug-in runs a model. ``auto`` stands for the fastest one that can run it on this host."""

from __future__ import annotations

from typing import NamedTuple

from pvlm.plugins import load_plugin
from pvlm_protocols.backend import ENTRY_POINT_GROUP, Backend, Conditional, LoadOptions

AUTO = "auto"
CANDIDATES = ("native", "torch")
"""What ``auto`` chooses from, the fastest first. All read the same checkpoints, by the same processor."""


class Choice(NamedTuple):
    """A plug-in by its name. ``reason``: why a faster candidate cannot run the model; empty if there is none."""

    name: str
    backend: type[Backend]
    reason: str = ""


def find_backend(name: str) -> type[Backend]:
    """The plug-in of a name; of ``auto`` the last candidate, whose `Backend.processor` is that of all.

    Raises ConfigError for an unknown name.
    """
    plugin: type[Backend] = load_plugin(ENTRY_POINT_GROUP, CANDIDATES[-1] if name == AUTO else name)
    return plugin


def choose_backend(name: str, options: LoadOptions) -> Choice:
    """The plug-in that loads a model, with ``auto`` resolved. May compile code, so call it in the worker.

    Raises ConfigError for an unknown name, and CheckpointError for an unreadable model.
    """
    if name != AUTO:
        return Choice(name, find_backend(name))
    reasons = []
    for candidate in CANDIDATES[:-1]:
        plugin = find_backend(candidate)
        if not (reason := plugin.unavailable(options) if isinstance(plugin, Conditional) else ""):
            return Choice(candidate, plugin)
        reasons.append(reason)
    return Choice(CANDIDATES[-1], find_backend(AUTO), "; ".join(reasons))
