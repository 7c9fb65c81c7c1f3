"""Small Qwen3-VL checkpoints with random weights, laid out as transformers 5 saves them or as released."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

from tests.backends.families.qwen_checkpoints import TOKEN_IDS, VOCAB_SIZE, save_random, text_settings, write_settings

TOKEN_SIDE = 32
"""Pixels along a side of what becomes a token: patches of 16, merged two by two."""

# The part of the released template that a question with a video uses.
TEMPLATE = (
    "{%- for message in messages %}{{- '<|im_start|>' + message.role + '\\n' }}{%- for content in message.content %}"
    "{%- if content.type == 'image' %}{{- '<|vision_start|><|image_pad|><|vision_end|>' }}"
    "{%- elif content.type == 'video' %}{{- '<|vision_start|><|video_pad|><|vision_end|>' }}"
    "{%- elif 'text' in content %}{{- content.text }}{%- endif %}{%- endfor %}{{- '<|im_end|>\\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)


_LARGE_TOWER = {"depth": 6, "hidden_size": 48, "intermediate_size": 176, "deepstack_visual_indexes": [1, 3, 5]}
SIZES: dict[str, dict[str, Any]] = {
    "2B": {
        "text": {"num_hidden_layers": 4, "hidden_size": 64, "intermediate_size": 192},
        "vision": {"depth": 5, "hidden_size": 32, "intermediate_size": 128, "deepstack_visual_indexes": [1, 2, 3]},
    },
    "8B": {
        "text": {"num_hidden_layers": 5, "hidden_size": 128, "intermediate_size": 384, "num_attention_heads": 8},
        "vision": _LARGE_TOWER,
    },
    "32B": {
        "text": {
            "num_hidden_layers": 7,
            "hidden_size": 80,
            "intermediate_size": 400,
            "num_attention_heads": 8,
            "num_key_value_heads": 1,
        },
        "vision": _LARGE_TOWER,
    },
}
"""The released sizes in small: their ratios of widths, heads and depths, and three layers with features."""


def qwen3_checkpoint(
    folder: Path,
    *,
    size: str | None = None,
    tied: bool = True,
    released: bool = False,
    dtype: torch.dtype = torch.float32,
    max_shard_size: str = "1GB",
    vocab_size: int = VOCAB_SIZE,
    layers: int = 4,
    seed: int = 0,
    max_positions: int = 2048,
) -> Path:
    """A model, saved by transformers, with settings and a tokenizer.

    ``released``: in the released layout instead. ``size``: of `SIZES`; only the 2B is tied.
    """
    small: dict[str, Any] = {"text": {"num_hidden_layers": layers, "head_dim": 32}, "vision": {}}
    shape = small if size is None else SIZES[size]
    tied = tied if size is None else size == "2B"
    text = {"head_dim": 16, **shape["text"]}
    config = Qwen3VLConfig(
        text_config=text_settings(
            **text,
            vocab_size=vocab_size,
            max_position_embeddings=max_positions,
            rope_parameters={
                "rope_type": "default",
                "rope_theta": 5000000.0,
                "mrope_section": [6, 5, 5] if text["head_dim"] == 32 else [4, 2, 2],
                "mrope_interleaved": True,
            },
            tie_word_embeddings=tied,
        ),
        vision_config={
            "depth": 4,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_heads": 2,
            "out_hidden_size": text.get("hidden_size", 64),
            "num_position_embeddings": 25,
            "deepstack_visual_indexes": [0, 2],
            "initializer_range": 0.2,
            **shape["vision"],
        },
        **TOKEN_IDS,
        tie_word_embeddings=tied,
    )
    save_random(folder, Qwen3VLForConditionalGeneration, config, seed, dtype, max_shard_size)
    write_settings(folder / "chat_template.json", {"chat_template": TEMPLATE})
    for name, kind in (("preprocessor", "Qwen2VLImageProcessorFast"), ("video_preprocessor", "Qwen3VLVideoProcessor")):
        write_settings(folder / f"{name}_config.json", {**_frames(), f"{name.replace('pre', '')}_type": kind})
    write_settings(folder / "generation_config.json", {"eos_token_id": [2, 0], "pad_token_id": 0})
    if released:
        _lay_out_as_released(folder)
    return folder


def _frames() -> dict[str, Any]:
    """The released keys, with fewer pixels."""
    return {
        "size": {"shortest_edge": 8 * TOKEN_SIDE**2, "longest_edge": 400 * TOKEN_SIDE**2},
        "patch_size": 16,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "processor_class": "Qwen3VLProcessor",
    }


def _lay_out_as_released(folder: Path) -> None:
    """As the released repositories have it: the rotary settings of transformers 4."""
    settings = json.loads((folder / "config.json").read_text())
    text, vision = settings["text_config"], settings["vision_config"]
    rope = text.pop("rope_parameters")
    text["rope_theta"] = rope.pop("rope_theta")
    text["rope_scaling"] = rope
    text["dtype"] = settings.pop("dtype")
    vision.pop("rope_parameters", None)
    vision["model_type"] = "qwen3_vl"
    write_settings(folder / "config.json", settings)
