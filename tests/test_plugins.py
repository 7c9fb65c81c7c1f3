"""Plug-ins are found by name, and a name that two packages claim is refused."""

from __future__ import annotations

from importlib.metadata import EntryPoint

import pytest

from pvlm import plugins
from pvlm.errors import ConfigError
from pvlm.plugins import load_plugin, plugin_names
from pvlm.speculation.pruning import UniformPruner, UVPruner

GROUP = "pvlm.pruners"


def test_our_own_are_found() -> None:
    assert load_plugin(GROUP, "uv") is UVPruner
    assert plugin_names(GROUP) == ["attention", "none", "novelty", "random", "specvlm", "uniform", "uv"]


def test_an_unknown_name_names_the_known() -> None:
    with pytest.raises(
        ConfigError, match="no plug-in 'uvv' in group pvlm.pruners: use one of attention, none, novelty, random"
    ):
        load_plugin(GROUP, "uvv")


def test_another_packages_plug_in_is_found_and_a_name_claimed_twice_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    module = "pvlm.speculation.pruning"
    points = [
        EntryPoint("elsewhere", f"{module}:UniformPruner", GROUP),
        EntryPoint("uv", f"{module}:UVPruner", GROUP),
        EntryPoint("uv", f"{module}:UniformPruner", GROUP),
    ]
    monkeypatch.setattr(
        plugins, "entry_points", lambda group, name=None: [p for p in points if name is None or p.name == name]
    )
    load_plugin.cache_clear()
    try:
        assert load_plugin(GROUP, "elsewhere") is UniformPruner
        with pytest.raises(ConfigError, match="'uv' in group pvlm.pruners is claimed more than once .*uninstall one"):
            load_plugin(GROUP, "uv")
    finally:
        load_plugin.cache_clear()
