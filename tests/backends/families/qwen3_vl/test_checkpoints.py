"""Ways in which Qwen3-VL checkpoints are laid out, and what the raw-torch backend refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from pvlm_backends.families.qwen3_vl import QWEN3_VL
from pvlm_protocols.backend import Backend, LoadOptions, Prompt
from tests.backends.conftest import BACKENDS
from tests.backends.families.qwen_family import (
    check_meta,
    check_missing_weight,
    check_refused_by_torch,
    logits,
    map_over_two_devices,
)
from tests.support.checkpoints import random_frames

from .checkpoint import TOKEN_SIDE, qwen3_checkpoint

PROMPT = Prompt("What happens?", random_frames(2, 3 * TOKEN_SIDE, 2 * TOKEN_SIDE))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return qwen3_checkpoint(tmp_path / "checkpoint", tied=False)


def test_the_released_layout_says_the_same(backend: type[Backend], folder: Path, tmp_path: Path) -> None:
    """With the rotary settings of transformers 4; each of them matters."""
    released = qwen3_checkpoint(tmp_path / "released", tied=False, released=True)
    expected = logits(backend, folder, PROMPT)
    torch.testing.assert_close(logits(backend, released, PROMPT), expected)
    settings = json.loads((released / "config.json").read_text())
    text = settings["text_config"]
    assert not {"rope_parameters"} & set(text)
    for changed in ({"rope_theta": 1e4}, {"rope_scaling": {**text["rope_scaling"], "mrope_section": [12, 2, 2]}}):
        (released / "config.json").write_text(json.dumps({**settings, "text_config": {**text, **changed}}))
        assert not torch.allclose(logits(backend, released, PROMPT), expected, atol=1e-3)


def test_the_released_4b(tmp_path: Path) -> None:
    """Its config.json, but for what nobody reads here."""
    settings = {
        "model_type": "qwen3_vl",
        "text_config": {
            "attention_bias": False,
            "dtype": "bfloat16",
            "head_dim": 128,
            "hidden_act": "silu",
            "hidden_size": 2560,
            "intermediate_size": 9728,
            "max_position_embeddings": 262144,
            "model_type": "qwen3_vl_text",
            "num_attention_heads": 32,
            "num_hidden_layers": 36,
            "num_key_value_heads": 8,
            "rms_norm_eps": 1e-06,
            "rope_scaling": {"mrope_interleaved": True, "mrope_section": [24, 20, 20], "rope_type": "default"},
            "rope_theta": 5000000,
            "tie_word_embeddings": True,
            "vocab_size": 151936,
        },
        "tie_word_embeddings": True,
        "vision_config": {
            "deepstack_visual_indexes": [5, 11, 17],
            "depth": 24,
            "hidden_act": "gelu_pytorch_tanh",
            "hidden_size": 1024,
            "in_channels": 3,
            "intermediate_size": 4096,
            "model_type": "qwen3_vl",
            "num_heads": 16,
            "num_position_embeddings": 2304,
            "out_hidden_size": 2560,
            "patch_size": 16,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
        },
    }
    config = QWEN3_VL.read_config(tmp_path, settings)
    text, vision = config.decoder, config.vision
    assert (text.head_dim, text.rope_theta, text.tied_head, text.max_positions) == (128, 5e6, True, 262144)
    assert (text.qk_norm, text.qkv_bias) == (True, False)
    assert text.rope_axes == (0, 1, 2) * 20 + (0,) * 4
    assert (vision.position_side, vision.deep_layers, vision.merge_size) == (48, (5, 11, 17), 2)
    assert config.dtype == "bfloat16"


@pytest.mark.parametrize(
    ("part", "changes", "message"),
    [
        ("text_config", {"attention_bias": True}, "attention_bias"),
        ("text_config", {"rope_parameters": {"rope_type": "yarn", "factor": 4.0}}, "yarn"),
        ("text_config", {"rope_parameters": {"rope_theta": 1e4, "mrope_section": [2, 2, 2]}}, r"\[2, 2, 2\].* 16"),
        ("text_config", {"rope_parameters": {"rope_theta": 1e4, "mrope_interleaved": False}}, "mrope_interleaved"),
        ("vision_config", {"hidden_act": "silu"}, "vision_config.hidden_act"),
        ("vision_config", {"hidden_size": 64}, "visual.patch_embed"),
        ("vision_config", {"num_position_embeddings": 16}, "visual.pos_embed"),
    ],
)
def test_what_raw_torch_does_not_do(folder: Path, part: str, changes: dict[str, Any], message: str) -> None:
    check_refused_by_torch(folder, part, changes, message)


def test_a_missing_weight(backend: type[Backend], folder: Path) -> None:
    check_missing_weight(
        backend,
        folder,
        "model.visual.deepstack_merger_list.1.norm.bias",
        r"visual\.deepstack_merger_list\.1\.norm\.bias",
    )


def test_all_on_the_meta_device(folder: Path) -> None:
    check_meta(folder, PROMPT)


def test_random_weights(folder: Path) -> None:
    """As many as the checkpoint has, for timing."""
    backend = BACKENDS["torch"]
    drawn = backend.load(LoadOptions(str(folder), extra={"random_weights": True}))
    assert drawn.info.parameters == backend.load(LoadOptions(str(folder))).info.parameters
    assert drawn.open(PROMPT, 1).prefill().isfinite().all()


def test_the_device_map_of_transformers(folder: Path) -> None:
    found = map_over_two_devices(folder)
    assert found["model.visual"] == found["model.language_model.embed_tokens"] == "cuda:0"
    assert found["model.language_model.layers.3"] == found["lm_head"] == "cuda:1"


def test_layers_over_two_devices(folder: Path) -> None:
    """The hand-over, of the features for the first layers too."""
    torch.testing.assert_close(
        logits(BACKENDS["torch"], folder, PROMPT, device="cpu:0,cpu:1"), logits(BACKENDS["torch"], folder, PROMPT)
    )
