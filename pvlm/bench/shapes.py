"""Checkpoints without weights: the decoders of released models in full size, to be timed with random numbers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import NamedTuple

from pvlm.config import bundled
from pvlm_protocols.backend import Role


class DecoderShape(NamedTuple):
    """A Qwen2 decoder, as in its config.json."""

    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    kv_heads: int
    vocab_size: int
    tied: bool = False


_LLAVA_05B = DecoderShape(896, 4864, 24, 14, 2, 152_000, tied=True)
_LLAVA_7B = DecoderShape(3584, 18_944, 28, 28, 4, 152_128)
_QWEN_7B = DecoderShape(3584, 18_944, 28, 28, 4, 152_064)
_QWEN_32B = DecoderShape(5120, 27_648, 64, 40, 8, 152_064)

PAIRS: dict[str, dict[Role, DecoderShape]] = {
    "llava-onevision-0.5b-7b": {"target": _LLAVA_7B, "draft": _LLAVA_05B},
    "qwen2.5-vl-7b-32b": {"target": _QWEN_32B, "draft": _QWEN_7B},
    "tiny": {"target": DecoderShape(64, 96, 4, 4, 2, 640), "draft": DecoderShape(32, 48, 2, 2, 1, 640, tied=True)},
}
"""``tiny`` is for trying the command out."""


def write_shape(folder: Path, shape: DecoderShape, max_positions: int) -> Path:
    """Write a folder that a backend loads with random weights: the bundled tokenizer, and this decoder.

    The decoders of both families are Qwen2's, so both are written as LLaVA-OneVision; a Qwen2.5-VL decoder has
    positions with three axes instead of one, which costs the same. The vision tower is the smallest that can be built.
    Returns ``folder``, which must not exist yet.
    """
    shutil.copytree(bundled("target"), folder, ignore=shutil.ignore_patterns("*.safetensors"))
    path = folder / "config.json"
    settings = json.loads(path.read_bytes())
    settings["tie_word_embeddings"] = shape.tied
    settings["text_config"] |= {
        "hidden_size": shape.hidden_size,
        "intermediate_size": shape.intermediate_size,
        "num_hidden_layers": shape.layers,
        "layer_types": ["full_attention"] * shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.hidden_size // shape.heads,
        "vocab_size": shape.vocab_size,
        "max_position_embeddings": max_positions,
        "tie_word_embeddings": shape.tied,
    }
    settings["vision_config"] |= {"num_hidden_layers": 1}
    path.write_text(json.dumps(settings))
    return folder
