"""The keys of Qwen2.5-VL's config.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..config import ModelConfig, read_decoder, read_rotary, read_sections, require, stored_dtype

# Of transformers' Qwen2_5_VLTextConfig, for checkpoints that leave a value out.
_TEXT_DEFAULTS = {
    "hidden_size": 8192,
    "intermediate_size": 29568,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "vocab_size": 152064,
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1_000_000.0,
}
_SECTIONS = (16, 24, 24)


@dataclass(frozen=True)
class QwenVisionConfig:
    """The vision tower of Qwen2.5-VL."""

    hidden_size: int
    intermediate_size: int
    heads: int
    layers: int
    patch_size: int
    temporal_patch_size: int
    merge_size: int
    """Patches along a side of the square that becomes a token."""
    window: int
    """Tokens along a side of a window of attention."""
    whole_frame_layers: frozenset[int]
    """Layers, from 0, whose attention sees the whole frame."""
    rope_theta: float


def read_config(folder: Path, settings: Mapping[str, Any]) -> ModelConfig[QwenVisionConfig]:
    """Read config.json. Raises CheckpointError for an unsupported value and names its key."""
    stored = settings.get("text_config") or settings  # as released, the text's keys stand beside vision_config
    kind = stored.get("model_type", "qwen2_5_vl_text").removesuffix("_text")
    require(folder, "text_config.model_type", kind, "qwen2_5_vl")
    text = {**_TEXT_DEFAULTS, **stored}
    head_dim = text["hidden_size"] // text["num_attention_heads"]
    rope = read_rotary(folder, text)
    return ModelConfig(
        decoder=read_decoder(settings, text, rope, head_dim, _rope_axes(folder, rope, head_dim // 2)),
        vision=_read_vision(folder, settings.get("vision_config") or {}),
        dtype=stored_dtype(settings),
    )


def _rope_axes(folder: Path, rope: Mapping[str, Any], frequencies: int) -> tuple[int, ...]:
    """Time, height and width take a section of the frequencies each, in this order."""
    sections = read_sections(folder, rope, _SECTIONS, frequencies)
    return tuple(axis for axis, length in enumerate(sections) for _ in range(length))


def _read_vision(folder: Path, vision: Mapping[str, Any]) -> QwenVisionConfig:
    require(folder, "vision_config.hidden_act", vision.get("hidden_act", "silu"), "silu")
    require(folder, "vision_config.in_channels", vision.get("in_channels", 3), 3)
    patch, merge = vision.get("patch_size", 14), vision.get("spatial_merge_size", 2)
    rope = vision.get("rope_parameters") or {}
    require(folder, "vision_config.rope_parameters.rope_type", rope.get("rope_type", "axial"), "axial")
    return QwenVisionConfig(
        hidden_size=vision.get("hidden_size", 3584),
        intermediate_size=vision.get("intermediate_size", 3420),
        heads=vision.get("num_heads", 16),
        layers=vision.get("depth", 32),
        patch_size=patch,
        temporal_patch_size=vision.get("temporal_patch_size", 2),
        merge_size=merge,
        window=vision.get("window_size", 112) // merge // patch,
        whole_frame_layers=frozenset(vision.get("fullatt_block_indexes", (7, 15, 23, 31))),
        rope_theta=rope.get("rope_theta", 10_000.0),
    )
