"""Small Qwen2.5-VL checkpoints with random weights, laid out as transformers 5 saves them or as released."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from tests.backends.families.qwen_checkpoints import TOKEN_IDS, VOCAB_SIZE, save_random, text_settings, write_settings
from tests.support.checkpoints import rename_weights

TOKEN_SIDE = 28
"""Pixels along a side of what becomes a token: patches of 14, merged two by two."""

# As released with Qwen2.5-VL.
TEMPLATE = (
    "{% set image_count = namespace(value=0) %}{% set video_count = namespace(value=0) %}{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    "{% endif %}<|im_start|>{{ message['role'] }}\n{% if message['content'] is string %}{{ message['content'] }}"
    "<|im_end|>\n{% else %}{% for content in message['content'] %}{% if content['type'] == 'image' or 'image' in "
    "content or 'image_url' in content %}{% set image_count.value = image_count.value + 1 %}{% if add_vision_id %}"
    "Picture {{ image_count.value }}: {% endif %}<|vision_start|><|image_pad|><|vision_end|>{% elif content['type'] == "
    "'video' or 'video' in content %}{% set video_count.value = video_count.value + 1 %}{% if add_vision_id %}Video "
    "{{ video_count.value }}: {% endif %}<|vision_start|><|video_pad|><|vision_end|>{% elif 'text' in content %}"
    "{{ content['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endif %}{% endfor %}{% if add_generation_prompt %}"
    "<|im_start|>assistant\n{% endif %}"
)


def qwen_checkpoint(
    folder: Path,
    *,
    tied: bool = True,
    released: bool = False,
    dtype: torch.dtype = torch.float32,
    max_shard_size: str = "1GB",
    vocab_size: int = VOCAB_SIZE,
    layers: int = 3,
    seed: int = 0,
    max_positions: int = 2048,
) -> Path:
    """A model, saved by transformers, with settings and a tokenizer. ``released``: in the released layout instead."""
    config = Qwen2_5_VLConfig(
        text_config=text_settings(
            num_hidden_layers=layers,
            vocab_size=vocab_size,
            max_position_embeddings=max_positions,
            rope_theta=1000000.0,
            rope_scaling={"type": "mrope", "mrope_section": [2, 3, 3]},
            tie_word_embeddings=tied,
        ),
        vision_config={
            "depth": 3,
            "hidden_size": 32,
            "intermediate_size": 44,
            "num_heads": 2,
            "out_hidden_size": 64,
            "window_size": 112,
            "fullatt_block_indexes": [1],
            "tokens_per_second": 2,
            "initializer_range": 0.2,
        },
        **TOKEN_IDS,
        tie_word_embeddings=tied,
    )
    save_random(folder, Qwen2_5_VLForConditionalGeneration, config, seed, dtype, max_shard_size)
    write_settings(folder / "chat_template.json", {"chat_template": TEMPLATE})
    write_settings(folder / "preprocessor_config.json", _preprocessor())
    write_settings(
        folder / "generation_config.json", {"eos_token_id": [2, 0], "pad_token_id": 0, "repetition_penalty": 1.05}
    )
    if released:
        _lay_out_as_released(folder)
    return folder


def _preprocessor() -> dict[str, Any]:
    """The released keys, with fewer pixels."""
    return {
        "min_pixels": 4 * TOKEN_SIDE**2,
        "max_pixels": 40 * TOKEN_SIDE**2,
        "patch_size": 14,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "image_processor_type": "Qwen2VLImageProcessor",
        "processor_class": "Qwen2_5_VLProcessor",
    }


def _lay_out_as_released(folder: Path) -> None:
    """As the released repositories have it: the text's keys at the top, ``visual.*`` and ``model.*``."""
    settings = json.loads((folder / "config.json").read_text())
    text = settings.pop("text_config")
    rope, dtype = text.pop("rope_parameters"), settings.pop("dtype")
    unwanted = ("model_type", "layer_types", "dtype")
    flat = {key: value for key, value in text.items() if key not in unwanted}
    vision = settings.pop("vision_config")
    kept = ("depth", "hidden_act", "hidden_size", "intermediate_size", "num_heads", "out_hidden_size", "patch_size")
    kept += ("spatial_merge_size", "window_size", "fullatt_block_indexes", "tokens_per_second", "temporal_patch_size")
    settings = {
        **flat,
        **settings,
        "rope_theta": rope["rope_theta"],
        "rope_scaling": {"type": "mrope", "mrope_section": rope["mrope_section"]},
        "torch_dtype": dtype,
        "use_sliding_window": False,
        "sliding_window": 32768,
        "vision_config": {**{key: vision[key] for key in kept}, "in_chans": 3, "spatial_patch_size": 14},
    }
    write_settings(folder / "config.json", settings)
    rename_weights(folder, released_name)


def released_name(name: str) -> str:
    """As in the released checkpoints."""
    return name.removeprefix("model.") if name.startswith("model.visual.") else name.replace("language_model.", "")


def module_name(name: str) -> str:
    """As the modules of transformers 5 are called."""
    if name.startswith("visual."):
        return f"model.{name}"
    if name.startswith("model.") and not name.startswith(("model.visual.", "model.language_model.")):
        return f"model.language_model.{name.removeprefix('model.')}"
    return name
