"""The registry: each family has one folder and one entry, and the rest of the plug-ins name no family."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import pvlm_backends
from pvlm_backends.families import FAMILIES, find_family
from pvlm_protocols.backend import CheckpointError

ROOT = Path(pvlm_backends.__file__).parent


def test_each_folder_is_a_family_and_each_family_has_tests() -> None:
    folders = {path.parent.name for path in (ROOT / "families").glob("*/__init__.py")}
    tested = {path.parent.name for path in Path(__file__).parent.glob("*/test_against_transformers.py")}
    assert folders == tested == set(FAMILIES)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_is_found_by_its_model_type(name: str) -> None:
    assert find_family(Path("model"), {"model_type": name}).model_type == name


@pytest.mark.parametrize("settings", [{}, {"model_type": "llava"}])
def test_an_unknown_family_names_the_known(settings: dict[str, str]) -> None:
    with pytest.raises(CheckpointError, match=r"model is a (None|'llava') checkpoint; supported: 'llava_onevision', "):
        find_family(Path("model"), settings)


@pytest.mark.parametrize("folder", ["raw", "native", "hf", "processing", "."])
def test_the_rest_names_no_family(folder: str) -> None:
    """A family that needs a line elsewhere lacks a part in `Family`."""
    names = re.compile("|".join(FAMILIES) + r"|Llava|Qwen2?5|model_type ==")
    for path in (ROOT / folder).glob("*.py"):
        assert not names.search(path.read_text()), path
