"""Ways in which Qwen2.5-VL checkpoints are laid out, and what the raw-torch backend refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from pvlm_backends.families.qwen2_5_vl import QWEN2_5_VL
from pvlm_protocols.backend import Backend, LoadOptions, Prompt
from tests.backends.conftest import BACKENDS
from tests.backends.families.qwen_family import (
    check_meta,
    check_missing_weight,
    check_refused_by_torch,
    logits,
    map_over_two_devices,
)
from tests.support.checkpoints import random_frames, rename_weights

from .checkpoint import TOKEN_SIDE, module_name, qwen_checkpoint, released_name

PROMPT = Prompt("What happens?", random_frames(2, 5 * TOKEN_SIDE, 2 * TOKEN_SIDE))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return qwen_checkpoint(tmp_path / "checkpoint", tied=False)


@pytest.mark.parametrize("rename", [released_name, module_name])
def test_weights_under_all_names(backend: type[Backend], folder: Path, rename: Callable[[str], str]) -> None:
    expected = logits(backend, folder, PROMPT)
    rename_weights(folder, rename)
    names = set(load_file(folder / "model.safetensors"))
    prefix = "model.language_model.layers.0." if rename is module_name else "model.layers.0."
    assert any(name.startswith(prefix) for name in names)
    assert any(name.startswith("model.visual." if rename is module_name else "visual.") for name in names)
    torch.testing.assert_close(logits(backend, folder, PROMPT), expected)


def test_the_released_layout_says_the_same(backend: type[Backend], folder: Path, tmp_path: Path) -> None:
    released = qwen_checkpoint(tmp_path / "released", tied=False, released=True)
    torch.testing.assert_close(logits(backend, released, PROMPT), logits(backend, folder, PROMPT))


def test_the_layout_of_later_transformers_4_says_the_same(backend: type[Backend], folder: Path) -> None:
    """As many fine-tuned ones are saved, and some sizes released: a text config, and in it the old rotary settings."""
    expected = logits(backend, folder, PROMPT)
    settings = json.loads((folder / "config.json").read_text())
    text = settings["text_config"]
    rope = text.pop("rope_parameters")
    text["rope_theta"] = rope["rope_theta"]
    text["rope_scaling"] = {"mrope_section": rope["mrope_section"], "rope_type": "default", "type": "default"}
    settings["torch_dtype"] = settings.pop("dtype")
    for changed in ((3, 2, 3), rope["mrope_section"]):
        text["rope_scaling"]["mrope_section"] = list(changed)
        (folder / "config.json").write_text(json.dumps(settings))
        assert torch.allclose(logits(backend, folder, PROMPT), expected, atol=1e-4) == (
            changed == rope["mrope_section"]
        )


def test_a_tied_checkpoint_that_holds_its_head_too(backend: type[Backend], tmp_path: Path) -> None:
    folder = qwen_checkpoint(tmp_path / "checkpoint", released=True)
    expected = logits(backend, folder, PROMPT)
    weights = load_file(folder / "model.safetensors")
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    torch.testing.assert_close(logits(backend, folder, PROMPT), expected)


def test_the_released_7b(tmp_path: Path) -> None:
    """Its config.json, but for what nobody reads here."""
    settings = {
        "model_type": "qwen2_5_vl",
        "hidden_act": "silu",
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "max_position_embeddings": 128000,
        "max_window_layers": 28,
        "num_attention_heads": 28,
        "num_hidden_layers": 28,
        "num_key_value_heads": 4,
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0,
        "sliding_window": 32768,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "use_sliding_window": False,
        "vision_config": {
            "depth": 32,
            "hidden_act": "silu",
            "hidden_size": 1280,
            "intermediate_size": 3420,
            "num_heads": 16,
            "in_chans": 3,
            "out_hidden_size": 3584,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "spatial_patch_size": 14,
            "window_size": 112,
            "fullatt_block_indexes": [7, 15, 23, 31],
            "tokens_per_second": 2,
            "temporal_patch_size": 2,
        },
        "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
        "vocab_size": 152064,
    }
    config = QWEN2_5_VL.read_config(tmp_path, settings)
    text, vision = config.decoder, config.vision
    assert (text.head_dim, text.rope_axes, text.rope_theta) == (128, (0,) * 16 + (1,) * 24 + (2,) * 24, 1e6)
    assert (text.max_positions, text.rms_norm_eps, text.tied_head) == (128000, 1e-6, False)
    assert (vision.window, vision.merge_size, vision.whole_frame_layers) == (4, 2, {7, 15, 23, 31})
    assert config.dtype == "bfloat16"


@pytest.mark.parametrize(
    ("part", "changes", "message"),
    [
        ("text_config", {"use_sliding_window": True}, "sliding"),
        ("text_config", {"rope_parameters": {"rope_type": "yarn", "factor": 4.0}}, "yarn"),
        ("text_config", {"rope_parameters": {"type": "mrope", "mrope_section": [2, 2, 2]}}, r"\[2, 2, 2\].* 8"),
        ("text_config", {"hidden_act": "gelu"}, "hidden_act"),
        ("vision_config", {"hidden_act": "gelu"}, "vision_config.hidden_act"),
        ("vision_config", {"hidden_size": 64}, "visual.patch_embed"),
    ],
)
def test_what_raw_torch_does_not_do(folder: Path, part: str, changes: dict[str, Any], message: str) -> None:
    check_refused_by_torch(folder, part, changes, message)


def test_a_missing_weight(backend: type[Backend], folder: Path) -> None:
    check_missing_weight(backend, folder, "visual.blocks.1.mlp.up_proj.bias", r"visual\.blocks\.1\.mlp\.up_proj\.bias")


def test_all_on_the_meta_device(folder: Path) -> None:
    check_meta(folder, PROMPT)


@pytest.mark.parametrize("tied", [True, False])
def test_the_device_map_of_transformers(tmp_path: Path, tied: bool) -> None:
    found = map_over_two_devices(qwen_checkpoint(tmp_path / "checkpoint", tied=tied, released=True))
    assert found["model.visual"] == found["model.language_model.embed_tokens"] == "cuda:0"
    assert found["model.language_model.layers.2"] == found["model.language_model.norm"] == "cuda:1"
    assert found["lm_head"] == ("cuda:0" if tied else "cuda:1")


def test_layers_over_two_devices(folder: Path) -> None:
    """The hand-over; see test_loading.py for what a machine without a GPU can show."""
    spread = BACKENDS["torch"].load(LoadOptions(str(folder), device="cpu:0,cpu:1"))
    torch.testing.assert_close(spread.open(PROMPT, 1).prefill(), logits(BACKENDS["torch"], folder, PROMPT))
