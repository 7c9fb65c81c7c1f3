"""Fixtures for the tests of the backends: the plug-ins, and their models of the bundled pair and of random weights."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from pvlm_backends.hf import HuggingFaceBackend
from pvlm_backends.native import NativeBackend
from pvlm_backends.raw import TorchBackend
from pvlm_protocols.backend import Backend, LoadOptions
from tests.backends.families.llava_onevision.checkpoint import RANDOM_CHECKPOINTS, llava_checkpoint
from tests.support.native import NATIVE
from tests.support.pair import SMALL

BACKENDS: dict[str, type[Backend]] = {
    "torch": TorchBackend,
    **({"native": NativeBackend} if NATIVE else {}),
    "hf": HuggingFaceBackend,
}
ANYWHERE = [name for name in BACKENDS if name != "native"]
"""Those that compute in other dtypes than float32, and on other devices than one CPU."""


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=BACKENDS)
def backend_name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def backend(backend_name: str) -> type[Backend]:
    return BACKENDS[backend_name]


@pytest.fixture
def bundled_copy(tmp_path: Path) -> Path:
    """A copy of the bundled target's settings, to change."""
    copied = tmp_path / "checkpoint"
    shutil.copytree(SMALL / "target", copied, ignore=shutil.ignore_patterns("*.safetensors"))
    return copied


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A checkpoint's folder by name: ``target``, ``draft`` or one of RANDOM_CHECKPOINTS. Not to be changed."""
    made: dict[str, Path] = {"target": SMALL / "target", "draft": SMALL / "draft"}

    def find(name: str) -> Path:
        if name not in made:
            folder = tmp_path_factory.mktemp("checkpoints") / name
            made[name] = llava_checkpoint(folder, **RANDOM_CHECKPOINTS[name])
        return made[name]

    return find


@pytest.fixture(scope="session")
def load_backend(checkpoints: Callable[[str], Path]) -> Callable[[str, str], Backend]:
    """A loaded backend by its own name and its checkpoint's, each loaded once."""
    loaded: dict[tuple[str, str], Backend] = {}

    def load(backend: str, checkpoint: str) -> Backend:
        if (backend, checkpoint) not in loaded:
            options = LoadOptions(str(checkpoints(checkpoint)), dtype="float32")
            loaded[backend, checkpoint] = BACKENDS[backend].load(options)
        return loaded[backend, checkpoint]

    return load
