"""Plug-ins are found by name, and a name that two packages claim is refused."""

from __future__ import annotations

from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any, Final

import pytest
import torch

from pvlm import ConfigError, Engine, ModelError, plugins
from pvlm.cli import main
from pvlm.plugins import GROUPS, Group, load_plugin, plugin_names
from pvlm.speculation.pruning import UniformPruner, UVPruner, select_tokens
from tests.support.plugin import DRAFT, TARGET
from tests.support.plugin import plugins as plugins_of

GROUP: Final = "pvlm.pruners"


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


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


# ---- plug-ins that are none ---------------------------------------------------------------------------------------


class _Good:
    name = "good"
    needs_states = False
    needs_attention = False

    def select(self, m: int, keep: int, states: object, seed: int) -> None: ...


class WithoutStates(_Good):
    needs_states = None


class WithArguments(_Good):
    def __init__(self, share: float) -> None: ...


class WithoutSelect:
    name = "idle"
    needs_states = needs_attention = False


class NarrowSelect(_Good):
    def select(self, m: int, keep: int) -> None: ...  # type: ignore[override]


class ReaderWithoutPath:
    def read(self, indices: object) -> None: ...

    def finish(self) -> None: ...


def open_video(path: str) -> None: ...


def open_nothing() -> None: ...


class BackendWithoutProcessor:
    @classmethod
    def load(cls, options: object, on_progress: object = None) -> None: ...


INSTANCE = _Good()


@pytest.mark.parametrize(
    ("group", "attribute", "problem"),
    [
        ("pvlm.pruners", "WithoutStates", r"it needs needs_states, a bool"),
        ("pvlm.pruners", "WithArguments", "the class must be callable with no arguments"),
        ("pvlm.pruners", "WithoutSelect", "it has no method select"),
        ("pvlm.pruners", "NarrowSelect", "select must be callable with 4 arguments"),
        ("pvlm.pruners", "INSTANCE", "it is <.*_Good object at .*>, not a class"),
        ("pvlm.video_readers", "ReaderWithoutPath", "the class must be callable with 1 argument"),
        ("pvlm.video_readers", "open_nothing", "the function must be callable with 1 argument"),
        ("pvlm.pruners", "open_nothing", "it is <function open_nothing at .*>, not a class"),
        ("pvlm.backends", "BackendWithoutProcessor", "it has no method processor"),
    ],
)
def test_a_class_that_is_no_plug_in_is_refused_with_what_it_lacks(group: Group, attribute: str, problem: str) -> None:
    with pytest.raises(ModelError, match=f"plug-in '{__name__}:{attribute}' in group {group} is no plug-in.*{problem}"):
        load_plugin(group, f"{__name__}:{attribute}")


@pytest.mark.parametrize(
    ("path", "problem"),
    [
        ("no_such_package.pruner:Pruner", r"needs the package 'no_such_package', which is not installed \(pip install"),
        ("tests.test_plugins:Nothing", "cannot be imported: AttributeError: module .* has no attribute 'Nothing'"),
        ("tests.support.exits:Pruner", "cannot be imported: SystemExit: 3"),
        (":Pruner", "cannot be imported: ValueError"),
    ],
)
def test_a_plug_in_that_cannot_be_imported_says_why(path: str, problem: str) -> None:
    with pytest.raises(ModelError, match=f"plug-in '{path}' in group pvlm.pruners {problem}"):
        load_plugin("pvlm.pruners", path)


def test_a_function_may_stand_for_a_reader() -> None:
    assert load_plugin("pvlm.video_readers", f"{__name__}:open_video") is open_video


def test_all_of_ours_fulfil_their_interfaces() -> None:
    for group in GROUPS:
        for name in plugin_names(group):
            load_plugin(group, name)


@pytest.mark.anyio
@pytest.mark.parametrize("setting", ["prune", "video_reader"])
async def test_an_engine_checks_its_plug_ins_when_it_opens(setting: str) -> None:
    toy: dict[str, Any] = {"target": TARGET, "draft": DRAFT, "backend": "tests.support.toy:ToyBackend"}
    settings = {**toy, "transport": "inproc", setting: f"{__name__}:WithoutStates"}
    with pytest.raises(ModelError, match=f"plug-in '{__name__}:WithoutStates' in group .* is no plug-in of this group"):
        async with Engine.create(settings):
            raise AssertionError


def test_doctor_says_what_is_wrong_with_a_plug_in(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    entries = f"[pvlm.pruners]\nbroken = {__name__}:WithoutStates\ngone = no_such_package:Pruner\n"
    with plugins_of(tmp_path, "pvlm-broken", entries), pytest.MonkeyPatch.context() as patch:
        patch.setattr("pvlm.cli.doctor._load_bundled", _described)
        assert main(["doctor"]) == 1
    said = " ".join(capsys.readouterr().out.split())
    assert (
        "pvlm.pruners: broken plug-in 'broken' in group pvlm.pruners (tests.test_plugins:WithoutStates) is no" in said
    )
    assert "needs the package 'no_such_package', which is not installed (pip install no_such_package)" in said
    assert "pvlm.pruners: uv ok" in said


async def _described(output: object) -> str:
    return "a pair"


# ---- masks --------------------------------------------------------------------------------------------------------


class Masked(_Good):
    def __init__(self, mask: object = None) -> None:
        self._mask = mask

    def select(self, m: int, keep: int, states: object, seed: int) -> Any:
        return self._mask


@pytest.mark.parametrize(
    ("mask", "given"),
    [
        ([True, False, True], "list"),
        (torch.ones(3), r"torch.float32 \(3,\) with 3 set"),
        (torch.ones(3, dtype=torch.bool), r"torch.bool \(3,\) with 3 set"),
        (torch.ones(2, dtype=torch.bool), r"torch.bool \(2,\) with 2 set"),
    ],
)
def test_a_mask_of_another_kind_is_an_error(mask: object, given: str) -> None:
    pruner: Any = Masked(mask)
    with pytest.raises(ModelError, match=rf"pruner 'good' gave {given}: a mask must be bool \(3,\) with 2 set"):
        select_tokens(pruner, 3, 2, None, 0)
