"""Ways in which checkpoints are laid out, and in which they are broken."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from pvlm_backends.families.llava_onevision import LLAVA_ONEVISION
from pvlm_protocols.backend import Backend, BackendError, CheckpointError, LoadOptions, Prompt
from tests.backends.conftest import BACKENDS
from tests.backends.families.llava_onevision.checkpoint import IMAGE_SIZE, llava_checkpoint, released_names
from tests.support.checkpoints import edit_settings, random_frames, rename_weights

PROMPT = Prompt("What happens?", random_frames(1, IMAGE_SIZE, IMAGE_SIZE))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return llava_checkpoint(tmp_path / "checkpoint", tied=False)


def logits(backend: type[Backend], folder: Path) -> torch.Tensor:
    return backend.load(LoadOptions(str(folder))).open(PROMPT, 1).prefill().clone()


def module_names(name: str) -> str:
    """As the modules of transformers 5 are called."""
    if name.startswith("language_model.lm_head"):
        return name.removeprefix("language_model.")
    name = name.replace("language_model.model.", "language_model.")
    return f"model.{name}"


@pytest.mark.parametrize("rename", [released_names, module_names])
def test_weights_under_all_names(backend: type[Backend], folder: Path, rename: Callable[[str], str]) -> None:
    expected = logits(backend, folder)
    names = set(load_file(folder / "model.safetensors"))
    rename_weights(folder, rename)
    assert set(load_file(folder / "model.safetensors")) != names
    torch.testing.assert_close(logits(backend, folder), expected)


@pytest.mark.parametrize("tied", [False, True])
def test_the_released_layout_says_the_same(backend: type[Backend], tmp_path: Path, tied: bool) -> None:
    saved = llava_checkpoint(tmp_path / "saved", tied=tied)
    released = llava_checkpoint(tmp_path / "released", tied=tied, released=True)
    expected = logits(backend, saved)
    torch.testing.assert_close(logits(backend, released), expected)
    settings = json.loads((released / "config.json").read_text())
    assert {"torch_dtype", "image_token_index", "video_token_index"} <= set(settings)
    assert (settings["tie_word_embeddings"], settings["text_config"]["tie_word_embeddings"]) == (False, tied)
    settings["text_config"]["rope_theta"] *= 10
    (released / "config.json").write_text(json.dumps(settings))
    assert not torch.allclose(logits(backend, released), expected)


def test_a_tied_checkpoint_that_holds_its_head_too(backend: type[Backend], tmp_path: Path) -> None:
    folder = llava_checkpoint(tmp_path / "checkpoint")
    expected = logits(backend, folder)
    weights = load_file(folder / "model.safetensors")
    weights["language_model.lm_head.weight"] = weights["language_model.model.embed_tokens.weight"].clone()
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    torch.testing.assert_close(logits(backend, folder), expected)


def test_defaults_of_a_sparse_config() -> None:
    settings = {"model_type": "llava_onevision", "text_config": {"hidden_size": 896, "num_attention_heads": 14}}
    config = LLAVA_ONEVISION.read_config(Path("model"), settings)
    assert (config.decoder.head_dim, config.decoder.rms_norm_eps, config.decoder.rope_theta) == (64, 1e-6, 10000.0)
    assert (config.dtype, config.decoder.tied_head) == ("float32", False)


def test_the_dtype_is_float32_on_the_cpu(backend: type[Backend], checkpoints: Callable[[str], Path]) -> None:
    assert backend.load(LoadOptions(str(checkpoints("bfloat16")))).info.dtype == "float32"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "int8"}, "int8"),
        ({"device": "nowhere"}, "nowhere"),
        ({"extra": {"speed": "max"}}, "speed"),
    ],
)
def test_options_that_are_not_known(
    backend: type[Backend], checkpoints: Callable[[str], Path], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(BackendError, match=message):
        backend.load(LoadOptions(str(checkpoints("tied")), **options))


def test_a_missing_folder(backend: type[Backend], tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="missing"):
        backend.load(LoadOptions(str(tmp_path / "missing")))
    with pytest.raises(CheckpointError, match="missing"):
        backend.processor(str(tmp_path / "missing"))


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_missing_file(backend: type[Backend], folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(CheckpointError, match=name):
        backend.load(LoadOptions(str(folder)))


@pytest.mark.parametrize("size", [4, 1000, -100])
def test_truncated_weights(backend: type[Backend], folder: Path, size: int) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(CheckpointError, match="checkpoint"):
        backend.load(LoadOptions(str(folder)))


@pytest.mark.parametrize("name", [name for name in BACKENDS if name != "hf"])
def test_another_kind_of_model(name: str, folder: Path) -> None:
    edit_settings(folder / "config.json", model_type="llava")
    with pytest.raises(CheckpointError, match="'llava'"):
        BACKENDS[name].load(LoadOptions(str(folder)))


def test_a_missing_weight(backend: type[Backend], folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["language_model.model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"layers\.1\.mlp\.up_proj"):
        backend.load(LoadOptions(str(folder)))


def test_weights_of_another_shape(backend: type[Backend], folder: Path) -> None:
    settings = json.loads((folder / "config.json").read_text())
    settings["text_config"]["intermediate_size"] += 32
    (folder / "config.json").write_text(json.dumps(settings))
    with pytest.raises(CheckpointError, match=r"mlp|shape"):
        backend.load(LoadOptions(str(folder)))


def test_a_missing_shard(backend: type[Backend], tmp_path: Path) -> None:
    folder = llava_checkpoint(tmp_path / "checkpoint", max_shard_size="100KB")
    shard = sorted(folder.glob("model-*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(CheckpointError, match=shard.name):
        backend.load(LoadOptions(str(folder)))


def test_pickled_weights_are_refused_unless_allowed(backend: type[Backend], folder: Path) -> None:
    expected = logits(backend, folder)
    path = folder / "model.safetensors"
    torch.save(load_file(path), folder / "pytorch_model.bin")
    path.unlink()
    with pytest.raises(CheckpointError, match="pickle"):
        backend.load(LoadOptions(str(folder)))
    if backend is BACKENDS["hf"]:
        allowed = backend.load(LoadOptions(str(folder), allow_pickle=True))
        torch.testing.assert_close(allowed.open(PROMPT, 1).prefill(), expected)


@pytest.mark.parametrize(
    ("part", "changes", "message"),
    [
        (None, {"vision_feature_select_strategy": "default"}, "vision_feature_select_strategy"),
        (None, {"projector_hidden_act": "relu6"}, "relu6"),
        ("text_config", {"hidden_act": "gelu"}, "hidden_act"),
        ("text_config", {"model_type": "llama"}, "llama"),
        ("text_config", {"use_sliding_window": True}, "sliding"),
        ("text_config", {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, "yarn"),
        ("vision_config", {"model_type": "clip_vision_model"}, "clip_vision_model"),
    ],
)
def test_what_raw_torch_does_not_do(folder: Path, part: str | None, changes: dict[str, Any], message: str) -> None:
    settings = json.loads((folder / "config.json").read_text())
    (settings[part] if part else settings).update(changes)
    (folder / "config.json").write_text(json.dumps(settings))
    with pytest.raises(CheckpointError, match=message):
        BACKENDS["torch"].load(LoadOptions(str(folder)))
