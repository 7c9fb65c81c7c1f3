"""Small Qwen3-VL checkpoints with random weights, laid out as transformers 5 saves them or as released."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

from tests.backends.families.qwen2_5_vl.checkpoint import shared_tokenizer

TOKEN_SIDE = 32
"""Pixels along a side of what becomes a token: patches of 16, merged two by two."""
VOCAB_SIZE = 640

# The part of the released template that a question with a video uses.
TEMPLATE = (
    "{%- for message in messages %}{{- '<|im_start|>' + message.role + '\\n' }}{%- for content in message.content %}"
    "{%- if content.type == 'image' %}{{- '<|vision_start|><|image_pad|><|vision_end|>' }}"
    "{%- elif content.type == 'video' %}{{- '<|vision_start|><|video_pad|><|vision_end|>' }}"
    "{%- elif 'text' in content %}{{- content.text }}{%- endif %}{%- endfor %}{{- '<|im_end|>\\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)


def qwen3_checkpoint(
    folder: Path,
    *,
    tied: bool = True,
    released: bool = False,
    dtype: torch.dtype = torch.float32,
    max_shard_size: str = "1GB",
    vocab_size: int = VOCAB_SIZE,
    layers: int = 4,
    seed: int = 0,
    max_positions: int = 2048,
) -> Path:
    """A model, saved by transformers, with settings and a tokenizer. ``released``: in the released layout instead."""
    config = Qwen3VLConfig(
        text_config={
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_hidden_layers": layers,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 32,
            "vocab_size": vocab_size,
            "max_position_embeddings": max_positions,
            "initializer_range": 0.2,
            "rms_norm_eps": 1e-6,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 5000000.0,
                "mrope_section": [6, 5, 5],
                "mrope_interleaved": True,
            },
            "eos_token_id": 2,
            "bos_token_id": 0,
            "tie_word_embeddings": tied,
        },
        vision_config={
            "depth": 4,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_heads": 2,
            "out_hidden_size": 64,
            "num_position_embeddings": 25,
            "deepstack_visual_indexes": [0, 2],
            "initializer_range": 0.2,
        },
        image_token_id=3,
        video_token_id=4,
        vision_start_token_id=614,
        vision_end_token_id=615,
        tie_word_embeddings=tied,
    )
    torch.manual_seed(seed)
    model = Qwen3VLForConditionalGeneration(config)
    for weight in model.parameters():
        if weight.ndim == 1:  # biases are zero and norms one in a fresh model, which would hide mistakes
            weight.data += 0.1 * torch.randn_like(weight)
    model.to(dtype).save_pretrained(folder, max_shard_size=max_shard_size)
    _write(folder / "tokenizer.json", shared_tokenizer())
    special = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "tokenizer_class": "PreTrainedTokenizerFast"}
    _write(folder / "tokenizer_config.json", special)
    _write(folder / "chat_template.json", {"chat_template": TEMPLATE})
    for name, kind in (("preprocessor", "Qwen2VLImageProcessorFast"), ("video_preprocessor", "Qwen3VLVideoProcessor")):
        _write(folder / f"{name}_config.json", {**_frames(), f"{name.replace('pre', '')}_type": kind})
    _write(folder / "generation_config.json", {"eos_token_id": [2, 0], "pad_token_id": 0})
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
    _write(folder / "config.json", settings)


def _write(path: Path, settings: dict[str, Any]) -> None:
    path.write_text(json.dumps(settings, indent=2))
