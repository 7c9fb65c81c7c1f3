"""How weights come into memory: once, with progress, and from the Hub's cache."""

from __future__ import annotations

import json
import os
import shutil
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
from pvlm_protocols.backend import Backend, CheckpointError, LoadOptions, Prompt, PromptError
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


@pytest.mark.parametrize("name", ["/etc/model.safetensors", "../model.safetensors", "..", "", "a/b", "a\\b", "a\0"])
def test_an_index_that_leads_out_of_its_folder(sharded: Path, name: str) -> None:
    index = json.loads((sharded / files.WEIGHTS_INDEX).read_text())["weight_map"]
    (sharded / files.WEIGHTS_INDEX).write_text(json.dumps({"weight_map": {**index, "lm_head.weight": name}}))
    with pytest.raises(CheckpointError, match="only plain names") as caught:
        BACKENDS["torch"].load(LoadOptions(str(sharded)))
    assert repr(name) in str(caught.value)


def test_an_index_of_pickled_weights_that_leads_out_of_its_folder(sharded: Path) -> None:
    (sharded / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": {"lm_head.weight": "../a.bin"}}))
    for path in sharded.glob("*.safetensors*"):
        path.unlink()
    with pytest.raises(CheckpointError, match=r"'\.\./a\.bin'; only plain names"):
        BACKENDS["hf"].load(LoadOptions(str(sharded), allow_pickle=True))


def test_links_in_a_folder_are_followed(sharded: Path, tmp_path: Path) -> None:
    """As in the Hub's cache."""
    backend = BACKENDS["torch"]
    expected = backend.load(LoadOptions(str(sharded))).open(PROMPT, 1).prefill()
    linked = tmp_path / "linked"
    linked.mkdir()
    for path in sharded.iterdir():
        (linked / path.name).symlink_to(path)
    torch.testing.assert_close(backend.load(LoadOptions(str(linked))).open(PROMPT, 1).prefill(), expected)


@pytest.mark.parametrize("name", ANYWHERE)
def test_a_stale_copy_of_a_weight_is_not_read(name: str, sharded: Path) -> None:
    """The file that the index names holds the weight, also if another one comes later in order."""
    backend = BACKENDS[name]
    expected = backend.load(LoadOptions(str(sharded))).open(PROMPT, 1).prefill()
    index = json.loads((sharded / files.WEIGHTS_INDEX).read_text())["weight_map"]
    weight, shard = min(index.items(), key=lambda item: item[1])
    for other in set(index.values()) - {shard}:
        weights = load_file(sharded / other)
        save_file({**weights, weight: load_file(sharded / shard)[weight] + 1}, sharded / other, {"format": "pt"})
    torch.testing.assert_close(backend.load(LoadOptions(str(sharded))).open(PROMPT, 1).prefill(), expected)


def test_an_index_beside_a_newer_single_file(sharded: Path) -> None:
    index, single = sharded / files.WEIGHTS_INDEX, sharded / files.WEIGHTS
    single.write_bytes(next(sharded.glob("model-*")).read_bytes())
    os.utime(single, (index.stat().st_mtime - 60,) * 2)
    BACKENDS["torch"].load(LoadOptions(str(sharded)))
    os.utime(single, (index.stat().st_mtime + 60,) * 2)
    with pytest.raises(CheckpointError, match=rf"{single.name} and the older {index.name}"):
        BACKENDS["torch"].load(LoadOptions(str(sharded)))


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 1234\n"


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "chat_template.jinja", "model.safetensors"])
def test_a_git_lfs_pointer_is_called_so(tmp_path: Path, name: str) -> None:
    folder = llava_checkpoint(tmp_path / "checkpoint")
    (folder / name).write_text(POINTER)
    with pytest.raises(CheckpointError, match=rf"{name} is a Git LFS pointer.*git lfs pull"):
        BACKENDS["torch"].load(LoadOptions(str(folder)))


@pytest.mark.parametrize("left", [(), ("config.json",), ("config.json", "tokenizer.json", "tokenizer_config.json")])
def test_a_lora_folder_is_called_so(tmp_path: Path, left: tuple[str, ...]) -> None:
    """With as much of its base as people save beside it."""
    folder = llava_checkpoint(tmp_path / "checkpoint")
    for path in folder.iterdir():
        if path.name not in left and (not left or "safetensors" in path.name or "tokenizer" in path.name):
            path.unlink()
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "base_model_name_or_path": "Qwen/Base"}')
    (folder / "adapter_model.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"adapter \(LoRA\) for 'Qwen/Base', not a model; merge") as caught:
        BACKENDS["torch"].load(LoadOptions(str(folder)))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ANYWHERE)
@pytest.mark.parametrize("special", [False, True])
def test_an_added_token_without_an_embedding(name: str, tmp_path: Path, special: bool) -> None:
    folder = llava_checkpoint(tmp_path / "checkpoint", vocab_size=614)
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    added = {**tokenizer["added_tokens"][0], "id": 614, "content": "<think>", "special": special}
    path.write_text(json.dumps({**tokenizer, "added_tokens": [*tokenizer["added_tokens"], added]}))
    if special:
        template = folder / "chat_template.jinja"
        template.write_text(template.read_text() + "<think>")
    loaded = BACKENDS[name].load(LoadOptions(str(folder)))
    with pytest.raises(PromptError, match=r"'<think>', whose id 614 has no embedding.* end at 613"):
        loaded.open(Prompt("What happens?" if special else "What <think>?", PROMPT.frames), 1)


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


@pytest.mark.parametrize(("window", "refused"), [(8, True), (100_000, False)])
def test_a_window_that_drops_rows_is_refused(tmp_path: Path, window: int, refused: bool) -> None:
    """transformers cannot take tokens back from such a cache once it is full."""
    folder = llava_checkpoint(tmp_path / "checkpoint")
    settings = json.loads((folder / "config.json").read_text())
    text = settings["text_config"]
    text |= {"use_sliding_window": True, "sliding_window": window, "max_window_layers": 1}
    text["layer_types"] = ["full_attention", *["sliding_attention"] * (text["num_hidden_layers"] - 1)]
    (folder / "config.json").write_text(json.dumps(settings))
    options = LoadOptions(str(folder))
    if refused:
        with pytest.raises(CheckpointError, match="layer 2 of the decoder keeps only the last 8 tokens"):
            BACKENDS["hf"].load(options)
    else:
        session = BACKENDS["hf"].load(options).open(PROMPT, 8)
        session.prefill()
        expected = session.extend([5, 6, 7]).clone()
        session.truncate(1)
        torch.testing.assert_close(session.extend([6, 7]), expected[1:], rtol=1e-4, atol=1e-4)


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


def test_code_is_fetched_where_it_is_trusted(checkpoints: FIND, hub_cache: Path, tmp_path: Path) -> None:
    """A snapshot that was cached without it is complete for those who do not run it."""
    changed = tmp_path / "changed"
    shutil.copytree(checkpoints("tied"), changed)
    edit_settings(changed / "config.json", auto_map={"AutoConfig": "configuring.Config"})
    snapshot = fill_cache(hub_cache, changed, "*")
    assert files.locate_checkpoint(NAME) == snapshot
    with pytest.raises(CheckpointError, match=f"{NAME}.*only partly"):
        files.locate_checkpoint(NAME, code=True)
    (snapshot / "configuring.py").write_text("")
    assert files.locate_checkpoint(NAME, code=True) == snapshot


def test_a_hub_that_does_not_answer(hub_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(files, "_HUB_TIMEOUT_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        with pytest.raises(CheckpointError, match=f"{NAME}.*cannot be reached: .*[Tt]ime"):
            BACKENDS["torch"].processor(NAME)
