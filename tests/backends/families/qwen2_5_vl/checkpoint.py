"""Small Qwen2.5-VL checkpoints with random weights, laid out as transformers 5 saves them or as released."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from tests.support.checkpoints import BUNDLED, rename_weights

TOKEN_SIDE = 28
"""Pixels along a side of what becomes a token: patches of 14, merged two by two."""
VOCAB_SIZE = 640

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
# Beside the tokens of the bundled pair's tokenizer, whose <image> and <video> they replace.
SPECIAL_TOKENS = {3: "<|image_pad|>", 4: "<|video_pad|>", 614: "<|vision_start|>", 615: "<|vision_end|>"}


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
        text_config={
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_hidden_layers": layers,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "vocab_size": vocab_size,
            "max_position_embeddings": max_positions,
            "initializer_range": 0.2,
            "rms_norm_eps": 1e-6,
            "rope_theta": 1000000.0,
            "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]},
            "eos_token_id": 2,
            "bos_token_id": 0,
            "tie_word_embeddings": tied,
        },
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
        image_token_id=3,
        video_token_id=4,
        vision_start_token_id=614,
        vision_end_token_id=615,
        tie_word_embeddings=tied,
    )
    torch.manual_seed(seed)
    model = Qwen2_5_VLForConditionalGeneration(config)
    for weight in model.parameters():
        if weight.ndim == 1:  # biases are zero and norms one in a fresh model, which would hide mistakes
            weight.data += 0.1 * torch.randn_like(weight)
    model.to(dtype).save_pretrained(folder, max_shard_size=max_shard_size)
    _write(folder / "tokenizer.json", shared_tokenizer())
    special = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "tokenizer_class": "PreTrainedTokenizerFast"}
    _write(folder / "tokenizer_config.json", special)
    _write(folder / "chat_template.json", {"chat_template": TEMPLATE})
    _write(folder / "preprocessor_config.json", _preprocessor())
    _write(folder / "generation_config.json", {"eos_token_id": [2, 0], "pad_token_id": 0, "repetition_penalty": 1.05})
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


def shared_tokenizer() -> dict[str, Any]:
    """The tokenizer of the bundled pair, with the special tokens of the Qwen families."""
    settings: dict[str, Any] = json.loads((BUNDLED / "target" / "tokenizer.json").read_text())
    template = settings["added_tokens"][0]
    replaced = [token for token in settings["added_tokens"] if token["id"] not in SPECIAL_TOKENS]
    added = [{**template, "id": index, "content": text} for index, text in SPECIAL_TOKENS.items()]
    settings["added_tokens"] = sorted([*replaced, *added], key=lambda token: token["id"])
    vocabulary = settings["model"]["vocab"]
    kept = {token: index for token, index in vocabulary.items() if index not in SPECIAL_TOKENS}
    settings["model"]["vocab"] = kept | {text: i for i, text in SPECIAL_TOKENS.items() if i < len(vocabulary)}
    return settings


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
    _write(folder / "config.json", settings)
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


def _write(path: Path, settings: dict[str, Any]) -> None:
    path.write_text(json.dumps(settings, indent=2))
