"""Fixtures for the tests of the Qwen families: the checkpoints of a module's ``FAMILY``, here and in transformers."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from pvlm_protocols.backend import Backend, LoadOptions
from tests.backends.conftest import BACKENDS

from .qwen_family import QwenFamily, QwenReference


@pytest.fixture(scope="module")
def qwen_family(request: pytest.FixtureRequest) -> QwenFamily:
    found: QwenFamily = request.module.FAMILY
    return found


@pytest.fixture(scope="module")
def folders(qwen_family: QwenFamily, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A checkpoint by its name in the family. Not to be changed."""
    return cache(
        lambda name: qwen_family.checkpoint(tmp_path_factory.mktemp("qwen") / name, **qwen_family.checkpoints[name])
    )


@pytest.fixture(scope="module")
def references(qwen_family: QwenFamily, folders: Callable[[str], Path]) -> Callable[[str], QwenReference]:
    return cache(lambda name: qwen_family.reference(folders(name)))


@pytest.fixture(scope="module")
def load(folders: Callable[[str], Path]) -> Callable[[str, str], Backend]:
    """A backend in float32, by the checkpoint's name and its own."""
    return cache(lambda name, backend: BACKENDS[backend].load(LoadOptions(str(folders(name)), dtype="float32")))
