"""All backends keep the contract."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable
from functools import cache

import pytest
import torch

from pvlm_protocols.backend import Backend, BackendError, InterruptibleOpening, LoadOptions, Processor, Prompt
from tests.backends.conftest import BACKENDS
from tests.backends.contract import BackendContract
from tests.backends.families.llava_onevision.checkpoint import IMAGE_SIZE
from tests.backends.families.qwen2_5_vl.checkpoint import TOKEN_SIDE, qwen_checkpoint
from tests.backends.families.qwen3_vl.checkpoint import TOKEN_SIDE as QWEN3_TOKEN_SIDE
from tests.backends.families.qwen3_vl.checkpoint import qwen3_checkpoint
from tests.support.checkpoints import random_frames
from tests.support.native import NATIVE, NOT_NATIVE


@pytest.fixture(params=["tied", "untied"])
def checkpoint(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Backend]:
    folder = qwen_checkpoint(tmp_path_factory.mktemp("qwen") / "checkpoint")
    return cache(lambda name: BACKENDS[name].load(LoadOptions(str(folder))))


@pytest.fixture(scope="module")
def qwen3(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Backend]:
    folder = qwen3_checkpoint(tmp_path_factory.mktemp("qwen3") / "checkpoint")
    return cache(lambda name: BACKENDS[name].load(LoadOptions(str(folder))))


@pytest.fixture
def prompt() -> Prompt:
    return Prompt("What happens first in the video?", random_frames(3, IMAGE_SIZE, IMAGE_SIZE))


def equal(left: torch.Tensor, right: torch.Tensor) -> None:
    """The compiled passes give the same bits."""
    assert torch.equal(left, right)


class TestTorch(BackendContract):
    @pytest.fixture
    def backend(self, load_backend: Callable[[str, str], Backend], checkpoint: str) -> Backend:
        return load_backend("torch", checkpoint)

    @staticmethod
    def same_on_prefix(left: torch.Tensor, right: torch.Tensor) -> None:
        assert torch.equal(left, right)


@pytest.mark.skipif(not NATIVE, reason=NOT_NATIVE)
class TestNative(BackendContract):
    @pytest.fixture
    def backend(self, load_backend: Callable[[str, str], Backend], checkpoint: str) -> Backend:
        return load_backend("native", checkpoint)

    same = staticmethod(equal)

    same_on_prefix = same


class TestHuggingFace(BackendContract):
    @pytest.fixture
    def backend(self, load_backend: Callable[[str, str], Backend], checkpoint: str) -> Backend:
        return load_backend("hf", checkpoint)


class TestQwen(BackendContract):
    """Qwen2.5-VL, by all."""

    @pytest.fixture(params=BACKENDS)
    def backend(self, request: pytest.FixtureRequest, qwen: Callable[[str], Backend]) -> Backend:
        if request.param == "native":
            self.same = equal
        return qwen(str(request.param))

    @pytest.fixture
    def prompt(self) -> Prompt:
        return Prompt("What happens first in the video?", random_frames(3, 5 * TOKEN_SIDE, 3 * TOKEN_SIDE))


class TestQwen3(BackendContract):
    """Qwen3-VL, by all."""

    @pytest.fixture(params=BACKENDS)
    def backend(self, request: pytest.FixtureRequest, qwen3: Callable[[str], Backend]) -> Backend:
        if request.param == "native":
            self.same = equal
        return qwen3(str(request.param))

    @pytest.fixture
    def prompt(self) -> Prompt:
        return Prompt("What happens first in the video?", random_frames(3, 3 * QWEN3_TOKEN_SIDE, 2 * QWEN3_TOKEN_SIDE))


@pytest.mark.parametrize(
    ("family", "bound"),
    [
        ("llava_onevision", "llava_onevision.tower._FRAMES_AT_ONCE"),
        ("qwen2_5_vl", "patch_tower._PATCHES_AT_ONCE"),
        ("qwen3_vl", "patch_tower._PATCHES_AT_ONCE"),
    ],
)
def test_the_vision_tower_can_be_ended_before_each_group_of_frames(
    family: str,
    bound: str,
    load_backend: Callable[[str, str], Backend],
    qwen: Callable[[str], Backend],
    qwen3: Callable[[str], Backend],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Here a group is a frame, or a pair of frames."""
    monkeypatch.setattr(f"pvlm_backends.families.{bound}", 1)
    backend, side = {
        "llava_onevision": lambda: (load_backend("torch", "tied"), IMAGE_SIZE),
        "qwen2_5_vl": lambda: (qwen("torch"), 3 * TOKEN_SIDE),
        "qwen3_vl": lambda: (qwen3("torch"), 3 * QWEN3_TOKEN_SIDE),
    }[family]()
    groups: list[None] = []

    def cancel_in_the_third() -> None:
        groups.append(None)
        if len(groups) == 3:
            raise KeyError("third")

    assert isinstance(backend, InterruptibleOpening)
    with pytest.raises(KeyError, match="third"):
        backend.open_in_steps(Prompt("What happens?", random_frames(8, side, side)), 4, cancel_in_the_third)


@pytest.mark.parametrize("name", BACKENDS)
def test_a_closed_backend_opens_nothing(name: str, prompt: Prompt, checkpoints: Callable[[str], object]) -> None:
    fractions: list[float] = []
    backend = BACKENDS[name].load(LoadOptions(str(checkpoints("tied"))), fractions.append)
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0
    backend.close()
    backend.close()
    with pytest.raises(BackendError, match="closed"):
        backend.open(prompt, 1)


@pytest.mark.parametrize("name", BACKENDS)
def test_its_processor_keeps_the_interface(name: str, checkpoints: Callable[[str], object]) -> None:
    assert isinstance(BACKENDS[name].processor(str(checkpoints("tied"))), Processor)


@pytest.mark.parametrize("name", BACKENDS)
def test_its_processor_knows_where_the_video_tokens_lie(
    name: str, checkpoints: Callable[[str], object], load_backend: Callable[[str, str], Backend], prompt: Prompt
) -> None:
    """The random checkpoint has 5 x 5 patches a frame: pooled, rounded up, 3 x 3 tokens."""
    assert prompt.frames is not None
    grid = BACKENDS[name].processor(str(checkpoints("tied"))).video_grid(prompt.frames)
    assert grid == (3, 3, 3)
    assert math.prod(grid) == load_backend(name, "tied").open(prompt, 1).video_tokens


@pytest.mark.parametrize("module", ["raw:TorchBackend", "native:NativeBackend", "hf:HuggingFaceBackend"])
def test_a_backend_s_class_and_its_processor_import_nothing_heavy(
    module: str, checkpoints: Callable[[str], object]
) -> None:
    name, class_name = module.split(":")
    script = (
        f"import sys; from pvlm_backends.{name} import {class_name} as backend; "
        f"backend.processor({str(checkpoints('tied'))!r}); "
        "print([name for name in ('torch', 'transformers') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
