"""How weights come into memory: once, with progress, and from the Hub's cache."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save_file

from pvlm_backends.processing import files
from pvlm_protocols.backend import Backend, CheckpointError, LoadOptions, Prompt
from tests.backends.conftest import ANYWHERE, BACKENDS
from tests.backends.families.llava_onevision.checkpoint import IMAGE_SIZE, large_checkpoint, llava_checkpoint
from tests.support.checkpoints import edit_settings, random_frames

FIND = Callable[[str], Path]
PROMPT = Prompt("What happens?", random_frames(2, IMAGE_SIZE, IMAGE_SIZE))


# ---- memory and progress ------------------------------------------------------------------------------------------

PEAKS = """
import gc, json, sys, torch
from pvlm_protocols.backend import LoadOptions
from tests.backends.conftest import BACKENDS

def resident(what):
    with open("/proc/self/status") as status:
        return next(1024 * int(line.split()[1]) for line in status if line.startswith(what))

name, small, large, *dtypes = sys.argv[1:]
BACKENDS[name].load(LoadOptions(small))  # imports whatever loading needs
peaks = {}
for dtype in dtypes:
    gc.collect()
    before = resident("VmRSS")
    backend = BACKENDS[name].load(LoadOptions(large, dtype=dtype))
    peaks[dtype] = (resident("VmHWM") - before) / (getattr(torch, dtype).itemsize * backend.info.parameters)
    del backend
print(json.dumps(peaks))
"""


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return large_checkpoint(tmp_path_factory.mktemp("large") / "checkpoint")


def test_peak_memory_is_that_of_the_weights(backend_name: str, large: Path, checkpoints: FIND) -> None:
    """From bfloat16 files of 205 MB: as they are, and converted."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    dtypes = ["bfloat16", "float32"] if backend_name in ANYWHERE else ["float32"]
    # The larger one last: a process has only one peak.
    arguments = [backend_name, str(checkpoints("tied")), str(large), *dtypes]
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", PEAKS, *arguments], capture_output=True, text=True, cwd=root, env=environment
    )
    assert done.returncode == 0, done.stderr
    peaks = json.loads(done.stdout)
    # Less than the weights in float32 where they are packed by then.
    assert all(0.5 < peak <= 1.15 for peak in peaks.values()), peaks


def test_progress_goes_by_bytes(backend: type[Backend], checkpoints: FIND) -> None:
    folder, seen = checkpoints("sharded"), [0.0]
    backend.load(LoadOptions(str(folder)), seen.append)
    sizes = [weight.nbytes for shard in folder.glob("*.safetensors") for weight in load_file(shard).values()]
    steps = [after - before for before, after in pairwise(seen)]
    assert len(seen) > 20
    assert min(steps) >= 0
    assert seen[-1] == 1.0
    assert max(steps) >= max(sizes) / sum(sizes) * 0.99  # a step for each weight would be smaller
    assert max(steps) < 2 * max(sizes) / sum(sizes)


# ---- damage -------------------------------------------------------------------------------------------------------


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    return llava_checkpoint(tmp_path / "checkpoint", tied=False, max_shard_size="100KB")


def test_a_truncated_shard_is_named(backend: type[Backend], sharded: Path) -> None:
    shard = sorted(sharded.glob("model-*.safetensors"))[2]
    shard.write_bytes(shard.read_bytes()[:-10])
    with pytest.raises(CheckpointError, match=shard.name):
        backend.load(LoadOptions(str(sharded)))


def test_an_index_that_promises_too_much(backend: type[Backend], sharded: Path) -> None:
    name = "language_model.model.layers.1.mlp.up_proj.weight"
    index = json.loads((sharded / files.WEIGHTS_INDEX).read_text())["weight_map"]
    shard = sharded / next(file for weight, file in index.items() if weight.endswith(name.removeprefix("language_")))
    weights = {
        weight: tensor for weight, tensor in load_file(shard).items() if not weight.endswith("1.mlp.up_proj.weight")
    }
    save_file(weights, shard, {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"layers\.1\.mlp\.up_proj") as caught:
        backend.load(LoadOptions(str(sharded)))
    if backend is BACKENDS["torch"]:
        assert shard.name in str(caught.value)


@pytest.mark.parametrize("weight_map", [None, ["model.safetensors"], {"lm_head.weight": 1}])
def test_an_index_that_is_none(backend: type[Backend], sharded: Path, weight_map: Any) -> None:
    (sharded / files.WEIGHTS_INDEX).write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(CheckpointError, match="weight_map"):
        backend.load(LoadOptions(str(sharded)))


def test_quantised_weights_are_not_taken_for_plain_ones(tmp_path: Path) -> None:
    folder = llava_checkpoint(tmp_path / "checkpoint")
    path = folder / "model.safetensors"
    weights = load_file(path)
    name = next(name for name in weights if name.endswith("layers.2.mlp.down_proj.weight"))
    save_file({**weights, name: weights[name].to(torch.float8_e4m3fn)}, path, {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"layers\.2\.mlp\.down_proj\.weight.*F8_E4M3"):
        BACKENDS["torch"].load(LoadOptions(str(folder)))
    edit_settings(folder / "config.json", quantization_config={"quant_method": "fp8"})
    with pytest.raises(CheckpointError, match="quantization_config"):
        BACKENDS["torch"].load(LoadOptions(str(folder)))


# ---- names on the Hub ---------------------------------------------------------------------------------------------

NAME = "somebody/a-model"


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, without a Hub."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


def fill_cache(cache: Path, checkpoint: Path, *patterns: str) -> Path:
    """As the Hub's client lays files out: blobs, and a snapshot of links to them. Returns the snapshot."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = cache / f"models--{NAME.replace('/', '--')}"
    snapshot, blobs, references = repository / "snapshots" / commit, repository / "blobs", repository / "refs"
    for folder in (snapshot, blobs, references):
        folder.mkdir(parents=True)
    (references / "main").write_text(commit)
    for number, path in enumerate(path for pattern in patterns for path in sorted(checkpoint.glob(pattern))):
        (blobs / str(number)).write_bytes(path.read_bytes())
        (snapshot / path.name).symlink_to(Path("../../blobs") / str(number))
    return snapshot


@pytest.mark.parametrize("checkpoint", ["tied", "sharded"])
def test_a_cached_name_loads_without_the_hub(
    backend: type[Backend], checkpoints: FIND, hub_cache: Path, checkpoint: str
) -> None:
    fill_cache(hub_cache, checkpoints(checkpoint), "*")
    loaded = backend.load(LoadOptions(NAME))
    assert loaded.info.name == NAME
    assert loaded.info.tokenizer_fingerprint == backend.processor(NAME).tokenizer_fingerprint
    expected = backend.load(LoadOptions(str(checkpoints(checkpoint)))).open(PROMPT, 1).prefill()
    torch.testing.assert_close(loaded.open(PROMPT, 1).prefill(), expected)


def test_a_name_that_is_not_cached(backend: type[Backend], hub_cache: Path) -> None:
    for load in (lambda: backend.load(LoadOptions(NAME)), lambda: backend.processor(NAME)):
        with pytest.raises(CheckpointError) as caught:
            load()
        for part in (NAME, "cannot be reached", "HF_HUB_OFFLINE", f"hf download {NAME}", str(hub_cache), "a folder"):
            assert part in str(caught.value)


@pytest.mark.parametrize("missing", ["model-00002*", "*.safetensors"])
def test_a_name_that_is_cached_in_part(
    backend: type[Backend], checkpoints: FIND, hub_cache: Path, missing: str
) -> None:
    snapshot = fill_cache(hub_cache, checkpoints("sharded"), "*")
    for path in snapshot.glob(missing):
        path.unlink()
    assert backend.processor(NAME).end_token_ids == (2,)
    with pytest.raises(CheckpointError, match=f"{NAME}.*only partly"):
        backend.load(LoadOptions(NAME))


def test_a_hub_that_does_not_answer(hub_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(files, "_HUB_TIMEOUT_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        with pytest.raises(CheckpointError, match=f"{NAME}.*cannot be reached: .*[Tt]ime"):
            BACKENDS["torch"].processor(NAME)
