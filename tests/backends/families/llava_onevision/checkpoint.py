"""Small LLaVA-OneVision checkpoints with random weights, laid out as transformers 5 saves them or as released."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import LlavaOnevisionConfig, LlavaOnevisionForConditionalGeneration

from tests.support.checkpoints import edit_settings, rename_weights
from tests.support.pair import SMALL

IMAGE_SIZE = 70
"""Five patches along a side: an odd number, so that the pooling rounds up."""

RANDOM_CHECKPOINTS: dict[str, dict[str, Any]] = {
    "tied": {},
    "untied": {"tied": False},
    "sharded": {"tied": False, "max_shard_size": "100KB"},
    "bfloat16": {"dtype": torch.bfloat16},
    "float16": {"dtype": torch.float16},
    "several-layers": {"vision_feature_layer": [-2, -1]},
    "ungrouped": {"kv_heads": 4},
}


def llava_checkpoint(
    folder: Path,
    *,
    tied: bool = True,
    dtype: torch.dtype = torch.float32,
    max_shard_size: str = "1GB",
    vision_feature_layer: int | list[int] = -1,
    kv_heads: int = 2,
    vocab_size: int = 768,
    released: bool = False,
) -> Path:
    """A tiny model with random weights, saved by transformers, with the bundled tokenizer. ``released``: in the layout
    of the released checkpoints instead.
    """
    shutil.copytree(SMALL / "target", folder, ignore=shutil.ignore_patterns("model*", "config.json"))
    for name in ("preprocessor_config.json", "video_preprocessor_config.json"):
        edit_settings(folder / name, size={"height": IMAGE_SIZE, "width": IMAGE_SIZE})
    config = LlavaOnevisionConfig(
        text_config={
            "model_type": "qwen2",
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": kv_heads,
            "vocab_size": vocab_size,
            "max_position_embeddings": 512,
            "initializer_range": 0.2,
            "tie_word_embeddings": tied,
            "eos_token_id": 2,
            "bos_token_id": None,
        },
        vision_config={
            "model_type": "siglip_vision_model",
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": IMAGE_SIZE,
            "patch_size": 14,
            "vision_use_head": False,
        },
        image_token_index=3,
        video_token_index=4,
        vision_feature_layer=vision_feature_layer,
        tie_word_embeddings=tied,
    )
    torch.manual_seed(0)
    model = LlavaOnevisionForConditionalGeneration(config)
    for weight in model.parameters():
        if weight.ndim == 1:  # biases are zero and norms one in a fresh model, which would hide mistakes
            weight.data += 0.1 * torch.randn_like(weight)
    model.to(dtype).save_pretrained(folder, max_shard_size=max_shard_size)
    if released:
        _lay_out_as_released(folder)
    return folder


def _lay_out_as_released(folder: Path) -> None:
    """As the released repositories have it: the text's keys that are not their defaults, and a head that is tied (that
    of the 0.5B) by the text's word alone.
    """
    settings = json.loads((folder / "config.json").read_text())
    text, vision = settings["text_config"], settings["vision_config"]
    kept = ("eos_token_id", "hidden_size", "intermediate_size", "max_window_layers", "model_type")
    kept += ("num_attention_heads", "num_hidden_layers", "num_key_value_heads", "use_sliding_window", "vocab_size")
    kept_of_vision = ("hidden_size", "image_size", "intermediate_size", "model_type", "num_attention_heads")
    kept_of_vision += ("num_hidden_layers", "patch_size", "vision_use_head")
    edit_settings(
        folder / "config.json",
        dtype=None,
        torch_dtype=settings["dtype"],
        tie_word_embeddings=False,
        text_config={
            **{key: text[key] for key in kept},
            "rope_theta": text["rope_parameters"]["rope_theta"],
            "tie_word_embeddings": settings["tie_word_embeddings"],
            "torch_dtype": "bfloat16",
        },
        vision_config={key: vision[key] for key in kept_of_vision},
        multimodal_projector_bias=None,
    )
    rename_weights(folder, released_names)


def released_names(name: str) -> str:
    """As in the released checkpoints, saved by transformers 4."""
    name = name.removeprefix("model.")
    return name.replace("vision_tower.", "vision_tower.vision_model.")


def large_checkpoint(folder: Path) -> Path:
    """A model of 104 million random numbers in bfloat16, in several files; a third of it are embeddings and head."""
    shutil.copytree(llava_checkpoint(folder.with_name("small")), folder, ignore=shutil.ignore_patterns("model*"))
    config = LlavaOnevisionConfig.from_pretrained(folder)
    sizes = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 4, "vocab_size": 20_000}
    for name, value in sizes.items():
        setattr(config.text_config, name, value)
    config.text_config.layer_types = ["full_attention"] * 4
    config.tie_word_embeddings = config.text_config.tie_word_embeddings = False
    with torch.device("meta"):  # drawing the numbers as a fresh model does would take long
        model = LlavaOnevisionForConditionalGeneration(config)
    model = model.to(torch.bfloat16).to_empty(device="cpu")
    for weight in model.parameters():
        weight.data.uniform_(-0.03, 0.03)
    model.save_pretrained(folder, max_shard_size="60MB")
    return folder
