"""One version everywhere, and a page whose links work outside the repository."""

from __future__ import annotations

import importlib.util
import re
import tomllib
from types import ModuleType

import pytest
import yaml
from packaging.requirements import Requirement

import pvlm
from tests.style.tree import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


@pytest.fixture
def package_page() -> ModuleType:
    pytest.importorskip("hatchling")
    spec = importlib.util.spec_from_file_location("package_page", ROOT / "package_page.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_there_is_one_version() -> None:
    version = re.escape(pvlm.__version__)
    assert PROJECT["dynamic"] == ["version", "readme"]
    assert re.search(rf"^version: {version}$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.search(rf"^## \[{version}\] - \d{{4}}-\d\d-\d\d$", changelog, re.MULTILINE)
    for page in ("README.md", "docs/get-started/first-answer.md"):
        wheels = re.findall(r"pvlm-([\d.]+)-py3", (ROOT / page).read_text(encoding="utf-8"))
        assert set(wheels) == {pvlm.__version__}


def test_the_package_page_has_absolute_links(package_page: ModuleType) -> None:
    metadata = {"urls": PROJECT["urls"], "version": "9.9"}
    package_page.PackagePage(str(ROOT), {}).update(metadata)
    links = re.findall(r"\]\(([^)]+)\)", metadata["readme"]["text"])
    assert len(links) > 15
    assert [link for link in links if not link.startswith(("https://", "#"))] == []
    assert f"{PROJECT['urls']['Homepage']}/raw/v9.9/docs/images/trace.png" in links
    assert f"{PROJECT['urls']['Homepage']}/blob/v9.9/CHANGELOG.md" in links


def test_every_requirement_has_a_tested_version() -> None:
    pinned = {
        Requirement(line).name.lower().replace("_", "-")
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if not line.startswith("#")
    }
    extras = PROJECT["optional-dependencies"]
    wanted = [*PROJECT["dependencies"], *(one for extra, those in extras.items() if extra != "chaos" for one in those)]
    names = {Requirement(one).name.lower().replace("_", "-") for one in wanted}
    assert names - pinned == {PROJECT["name"]}  # an extra may contain another one


@pytest.mark.parametrize("name", ["ci", "release"])
def test_a_workflow_calls_what_exists(name: str) -> None:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / f"{name}.yml").read_text(encoding="utf-8"))
    commands = [step["run"] for job in workflow["jobs"].values() for step in job["steps"] if "run" in step]
    targets = {target for command in commands for target in re.findall(r"^make (\w+)$", command)}
    rules = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert commands
    assert targets <= rules
