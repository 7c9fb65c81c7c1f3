"""Checkpoints without weights: the decoders of released models in full size, for timing with random weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import NamedTuple

from pvlm.config import bundled
from pvlm_protocols.backend import Role


class Decoder(NamedTuple):
    """A Qwen2 decoder, as in its config.json."""

    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    kv_heads: int
    vocab_size: int
    tied: bool = False


_LLAVA_05B = Decoder(896, 4864, 24, 14, 2, 152_000, tied=True)
_LLAVA_7B = Decoder(3584, 18_944, 28, 28, 4, 152_128)
_QWEN_7B = Decoder(3584, 18_944, 28, 28, 4, 152_064)
_QWEN_32B = Decoder(5120, 27_648, 64, 40, 8, 152_064)

PAIRS: dict[str, dict[Role, Decoder]] = {
    "llava-onevision-0.5b-7b": {"target": _LLAVA_7B, "draft": _LLAVA_05B},
    "qwen2.5-vl-7b-32b": {"target": _QWEN_32B, "draft": _QWEN_7B},
    "tiny": {"target": Decoder(64, 96, 4, 4, 2, 640), "draft": Decoder(32, 48, 2, 2, 1, 640, tied=True)},
}
"""By name; ``tiny`` is for a first try of the command."""


def write_architecture(folder: Path, decoder: Decoder, max_positions: int) -> Path:
    """Write a folder with the bundled tokenizer and this decoder, which a backend loads with random weights.

    Both families have a Qwen2 decoder, so both are written as LLaVA-OneVision. A Qwen2.5-VL decoder has positions with
    three axes instead of one, which costs the same. The vision tower has one layer. Returns ``folder``, which must not
    exist yet.
    """
    shutil.copytree(bundled("target"), folder, ignore=shutil.ignore_patterns("*.safetensors"))
    path = folder / "config.json"
    settings = json.loads(path.read_bytes())
    settings["tie_word_embeddings"] = decoder.tied
    settings["text_config"] |= {
        "hidden_size": decoder.hidden_size,
        "intermediate_size": decoder.intermediate_size,
        "num_hidden_layers": decoder.layers,
        "layer_types": ["full_attention"] * decoder.layers,
        "num_attention_heads": decoder.heads,
        "num_key_value_heads": decoder.kv_heads,
        "head_dim": decoder.hidden_size // decoder.heads,
        "vocab_size": decoder.vocab_size,
        "max_position_embeddings": max_positions,
        "tie_word_embeddings": decoder.tied,
    }
    settings["vision_config"] |= {"num_hidden_layers": 1}
    path.write_text(json.dumps(settings))
    return folder
