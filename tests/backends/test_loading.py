"""How weights come into memory: once, with progress, from the Hub's cache, and onto several devices."""

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
from accelerate.utils import check_device_map
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForImageTextToText

from pvlm_backends.families import find_family
from pvlm_backends.hf import HuggingFaceBackend
from pvlm_backends.hf import model as hf_model
from pvlm_backends.placement import place_layers
from pvlm_backends.processing import files
from pvlm_backends.raw import TorchBackend
from pvlm_protocols.backend import Backend, BackendError, CheckpointError, EarlyStates, LoadOptions, Prompt

from .conftest import ANYWHERE, BACKENDS, IMAGE_SIZE, edit_settings, large_checkpoint, random_checkpoint, random_frames

FIND = Callable[[str], Path]
PROMPT = Prompt("What happens?", random_frames(2, IMAGE_SIZE, IMAGE_SIZE))


@pytest.fixture(params=BACKENDS)
def backend_name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def backend(backend_name: str) -> type[Backend]:
    return BACKENDS[backend_name]


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
    return random_checkpoint(tmp_path / "checkpoint", tied=False, max_shard_size="100KB")


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
    folder = random_checkpoint(tmp_path / "checkpoint")
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
    """An empty cache, and no Hub behind it."""
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


# ---- several devices ----------------------------------------------------------------------------------------------


@given(
    before=st.integers(0, 1000),
    layers=st.lists(st.integers(1, 100), min_size=1, max_size=40),
    after=st.integers(0, 1000),
    count=st.integers(1, 8),
)
def test_layers_lie_in_order_and_evenly(before: int, layers: list[int], after: int, count: int) -> None:
    count = min(count, len(layers))
    devices = [torch.device("cuda", index) for index in range(count)]
    placed = [device.index for device in place_layers(before, layers, after, devices)]
    assert len(placed) == len(layers)
    assert placed == sorted(placed)
    share = (before + sum(layers) + after) / count
    for device in range(count):
        held = sum(size for size, place in zip(layers, placed, strict=True) if place == device)
        fixed = before * (device == 0) + after * (device == count - 1)
        assert held + fixed <= max(share + max(layers), fixed + max(layers))


def test_layers_of_a_large_model() -> None:
    """28 equal layers with embeddings and head of three each, on two and four devices."""
    for count, expected in ((2, [14, 14]), (4, [5, 9, 8, 6])):
        devices = [torch.device("cuda", index) for index in range(count)]
        placed = place_layers(3, [1] * 28, 3, devices)
        assert [placed.count(device) for device in devices] == expected


def answers(backend: Backend) -> list[torch.Tensor]:
    """Everything that a session computes."""
    states: list[EarlyStates] = []
    session = backend.open(PROMPT, 8)
    logits = [session.prefill(early_layer=3, on_early_layer=states.append, early_attention=True).clone()]
    logits += [session.extend([5, 6, 7]).clone(), session.extend([8]).clone()]
    keep = torch.arange(session.video_tokens) % 2 == 0
    pruned = backend.open(PROMPT, 8)
    logits += [pruned.prefill(keep).clone(), pruned.extend([5, 6]).clone()]
    (found,) = states
    assert found.attention is not None
    return [*logits, found.video_first, found.video_last, found.question_last, found.attention]


@pytest.mark.parametrize("checkpoint", ["tied", "untied"])
@pytest.mark.parametrize("backend_name", ANYWHERE)
def test_two_devices_compute_what_one_does(backend: type[Backend], checkpoints: FIND, checkpoint: str) -> None:
    folder = str(checkpoints(checkpoint))
    spread = backend.load(LoadOptions(folder, device="cpu:0,cpu:1"))
    assert spread.info.device == "cpu:0,cpu:1"
    alone = backend.load(LoadOptions(folder))
    torch.testing.assert_close(answers(spread), answers(alone))


def test_all_on_the_meta_device(checkpoints: FIND) -> None:
    """Shapes without numbers; a tensor left on the CPU would be an error."""
    backend = BACKENDS["torch"].load(LoadOptions(str(checkpoints("untied")), device="meta"))
    assert all(tensor.is_meta for tensor in answers(backend))


class _Stop(Exception):
    pass


def test_layers_on_the_cpu_and_on_the_meta_device(checkpoints: FIND) -> None:
    """The first layer has numbers, and the last one has none, though its weights were read from the same files."""
    folder = str(checkpoints("untied"))
    found: list[EarlyStates] = []

    def stop(states: EarlyStates) -> None:
        found.append(states)
        raise _Stop

    for device in ("cpu", "cpu,meta"):
        session = BACKENDS["torch"].load(LoadOptions(folder, device=device)).open(PROMPT, 2)
        with pytest.raises(_Stop):
            session.prefill(early_layer=1, on_early_layer=stop)
    torch.testing.assert_close(found[1].video_last, found[0].video_last)
    with pytest.raises(NotImplementedError, match="meta"):
        session.prefill(early_layer=3, on_early_layer=stop)  # its states are asked for on the first device


def test_logits_come_from_the_device_of_the_head(checkpoints: FIND) -> None:
    backend = BACKENDS["torch"].load(LoadOptions(str(checkpoints("untied")), device="cpu,meta"))
    session = backend.open(PROMPT, 2)
    assert session.prefill().is_meta
    assert session.extend([5, 6]).is_meta


def test_a_model_whose_layers_are_all_on_one_device_is_still_on_two(tmp_path: Path) -> None:
    """Embeddings that outweigh all else fill the first: no CUDA graph could hold its passes."""
    folder = random_checkpoint(tmp_path / "checkpoint", vocab_size=8192)
    backend = BACKENDS["torch"].load(LoadOptions(str(folder), device="cpu,meta"))
    assert isinstance(backend, TorchBackend)
    assert backend._decoder is not None
    assert {device.type for device in backend._decoder.layer_devices} == {"meta"}
    assert {device.type for device in backend._decoder.devices} == {"cpu", "meta"}


def test_devices_that_cannot_be_used(backend: type[Backend], checkpoints: FIND) -> None:
    folder = str(checkpoints("tied"))
    with pytest.raises(BackendError, match="'nowhere'"):
        backend.load(LoadOptions(folder, device="cpu,nowhere"))
    with pytest.raises(BackendError, match="4 devices .* 3 layers"):
        BACKENDS["torch"].load(LoadOptions(folder, device="cpu,meta,cpu,meta"))


@pytest.mark.filterwarnings("ignore:The following device_map keys")  # image_newline is a parameter, no module
@pytest.mark.parametrize("tied", [True, False])
def test_the_device_map_of_transformers(checkpoints: FIND, tied: bool) -> None:
    config = AutoConfig.from_pretrained(checkpoints("tied" if tied else "untied"))
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config)
    found = hf_model.device_map(model, [torch.device("cuda", index) for index in range(2)])
    check_device_map(model, found)  # every parameter has a place
    layers = [found[f"model.language_model.layers.{index}"] for index in range(3)]
    assert layers == sorted(layers)
    assert layers[-1] == found["model.language_model.norm"] == "cuda:1"
    assert found["lm_head"] == ("cuda:0" if tied else "cuda:1")
    assert {found[f"model.{name}"] for name in ("vision_tower", "multi_modal_projector", "image_newline")} == {"cuda:0"}
    assert found["model.language_model.embed_tokens"] == "cuda:0"


@pytest.mark.filterwarnings("ignore:The following device_map keys")
@pytest.mark.parametrize("checkpoint", ["tied", "untied"])
def test_transformers_computes_the_same_when_accelerate_dispatches_it(
    checkpoints: FIND, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, checkpoint: str
) -> None:
    """The disk stands for the second device: the layers there are empty but while accelerate's hooks run them, so what
    goes past a hook is an error. All is computed on the CPU: a tensor on the wrong one of two devices is not found.
    """
    folder, both = checkpoints(checkpoint), [torch.device("cpu"), torch.device("meta")]
    alone = BACKENDS["hf"].load(LoadOptions(str(folder)))
    mapped = hf_model.device_map
    monkeypatch.setattr(hf_model, "_to_be_spread", lambda options, devices: True)
    monkeypatch.setattr(
        hf_model,
        "device_map",
        lambda model, devices: {
            name: place.replace("meta", "disk") for name, place in mapped(model, devices).items()
        },
    )  # fmt: skip
    options = LoadOptions(str(folder), extra={"offload_folder": str(tmp_path)})
    settings = files.read_settings(folder, "config.json")
    model = hf_model.load_model(folder, settings, options, both, torch.float32, None)
    assert {name for name, place in model.hf_device_map.items() if place == "disk"} > {
        "model.language_model.layers.2",
        "model.language_model.norm",
    }
    elsewhere = [name for name, weight in model.named_parameters() if weight.is_meta]
    assert any("layers.2.self_attn.q_proj" in name for name in elsewhere)
    assert isinstance(alone, HuggingFaceBackend)
    family = find_family(folder, settings)
    spread = HuggingFaceBackend(alone.info, family, family.processor(folder, settings), model)
    torch.testing.assert_close(answers(spread), answers(alone))


def test_what_transformers_cannot_spread(checkpoints: FIND, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BackendError, match=r"'cpu,meta'.*backend 'torch'"):
        BACKENDS["hf"].load(LoadOptions(str(checkpoints("tied")), device="cpu,meta"))
    monkeypatch.setattr(hf_model, "find_spec", lambda name: None)
    options = LoadOptions(str(checkpoints("tied")), device="cuda:0,cuda:1")
    devices = [torch.device("cuda", index) for index in range(2)]
    with pytest.raises(BackendError, match=r"'cuda:0,cuda:1'.*pip install accelerate"):
        hf_model.load_model(checkpoints("tied"), {}, options, devices, torch.float32, None)
