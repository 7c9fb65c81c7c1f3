"""Parts of small checkpoints with random weights that the Qwen families share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from tests.support.pair import SMALL

VOCAB_SIZE = 640
# Beside the tokens of the bundled pair's tokenizer, whose <image> and <video> they replace.
SPECIAL_TOKENS = {3: "<|image_pad|>", 4: "<|video_pad|>", 614: "<|vision_start|>", 615: "<|vision_end|>"}
TOKEN_IDS = {"image_token_id": 3, "video_token_id": 4, "vision_start_token_id": 614, "vision_end_token_id": 615}


def text_settings(**changes: Any) -> dict[str, Any]:
    """A small decoder's part of config.json."""
    return {
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "initializer_range": 0.2,
        "rms_norm_eps": 1e-6,
        "eos_token_id": 2,
        "bos_token_id": 0,
        **changes,
    }


def save_random(
    folder: Path, kind: type[PreTrainedModel], config: PreTrainedConfig, seed: int, dtype: torch.dtype, shard_size: str
) -> None:
    """Save a model with random weights, and the shared tokenizer."""
    torch.manual_seed(seed)
    model = kind(config)
    for weight in model.parameters():
        if weight.ndim == 1:  # biases are zero and norms one in a fresh model, which would hide mistakes
            weight.data += 0.1 * torch.randn_like(weight)
    model.to(dtype).save_pretrained(folder, max_shard_size=shard_size)
    write_settings(folder / "tokenizer.json", _tokenizer())
    special = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "tokenizer_class": "PreTrainedTokenizerFast"}
    write_settings(folder / "tokenizer_config.json", special)


def write_settings(path: Path, settings: dict[str, Any]) -> None:
    path.write_text(json.dumps(settings, indent=2))


def _tokenizer() -> dict[str, Any]:
    """The tokenizer of the bundled pair, with the special tokens of the Qwen families."""
    settings: dict[str, Any] = json.loads((SMALL / "target" / "tokenizer.json").read_text())
    template = settings["added_tokens"][0]
    replaced = [token for token in settings["added_tokens"] if token["id"] not in SPECIAL_TOKENS]
    added = [{**template, "id": index, "content": text} for index, text in SPECIAL_TOKENS.items()]
    settings["added_tokens"] = sorted([*replaced, *added], key=lambda token: token["id"])
    vocabulary = settings["model"]["vocab"]
    kept = {token: index for token, index in vocabulary.items() if index not in SPECIAL_TOKENS}
    settings["model"]["vocab"] = kept | {text: i for i, text in SPECIAL_TOKENS.items() if i < len(vocabulary)}
    return settings
