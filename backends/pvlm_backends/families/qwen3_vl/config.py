"""The keys of Qwen3-VL's config.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..config import ModelConfig, read_decoder, read_rotary, read_sections, require, stored_dtype

# Of transformers' Qwen3VLTextConfig, for checkpoints that leave a value out.
_TEXT_DEFAULTS = {
    "hidden_size": 4096,
    "intermediate_size": 22016,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "head_dim": 128,
    "vocab_size": 151936,
    "max_position_embeddings": 128000,
    "rms_norm_eps": 1e-6,
    "rope_theta": 500_000.0,
}
_SECTIONS = (24, 20, 20)


@dataclass(frozen=True)
class Qwen3VisionConfig:
    """The vision tower of Qwen3-VL."""

    hidden_size: int
    intermediate_size: int
    heads: int
    layers: int
    patch_size: int
    temporal_patch_size: int
    merge_size: int
    """Patches along a side of the square that becomes a token."""
    position_side: int
    """Learned positions along a side of their square, which is stretched over each frame."""
    deep_layers: tuple[int, ...]
    """Layers, from 0, whose output also becomes features for the decoder: one for each of its first layers."""
    rope_theta: float


def read_config(folder: Path, settings: Mapping[str, Any]) -> ModelConfig[Qwen3VisionConfig]:
    """Read config.json. Raises CheckpointError for an unsupported value and names its key."""
    stored = settings.get("text_config") or {}
    kind = stored.get("model_type", "qwen3_vl_text").removesuffix("_text")
    require(folder, "text_config.model_type", kind, "qwen3_vl")
    text = {**_TEXT_DEFAULTS, **stored}
    require(folder, "text_config.attention_bias", text.get("attention_bias", False), False)
    head_dim = text["head_dim"] or text["hidden_size"] // text["num_attention_heads"]
    rope = read_rotary(folder, text)
    axes = _rope_axes(folder, rope, head_dim // 2)
    return ModelConfig(
        decoder=read_decoder(settings, text, rope, head_dim, axes, qkv_bias=False, qk_norm=True),
        vision=_read_vision(folder, settings.get("vision_config") or {}),
        dtype=stored_dtype(settings),
    )


def _rope_axes(folder: Path, rope: Mapping[str, Any], frequencies: int) -> tuple[int, ...]:
    """Height and width take every third frequency each until their sections are full; time takes the others."""
    require(folder, "mrope_interleaved", rope.get("mrope_interleaved", True), True)
    sections = read_sections(folder, rope, _SECTIONS, frequencies)
    in_turn = ((index, index % 3) for index in range(frequencies))
    return tuple(axis if index < 3 * sections[axis] else 0 for index, axis in in_turn)


def _read_vision(folder: Path, vision: Mapping[str, Any]) -> Qwen3VisionConfig:
    activation = "gelu_pytorch_tanh"
    require(folder, "vision_config.hidden_act", vision.get("hidden_act", activation), activation)
    require(folder, "vision_config.in_channels", vision.get("in_channels", 3), 3)
    rope = vision.get("rope_parameters") or {}
    require(folder, "vision_config.rope_parameters.rope_type", rope.get("rope_type", "axial"), "axial")
    return Qwen3VisionConfig(
        hidden_size=vision.get("hidden_size", 1152),
        intermediate_size=vision.get("intermediate_size", 4304),
        heads=vision.get("num_heads", 16),
        layers=vision.get("depth", 27),
        patch_size=vision.get("patch_size", 16),
        temporal_patch_size=vision.get("temporal_patch_size", 2),
        merge_size=vision.get("spatial_merge_size", 2),
        position_side=int(vision.get("num_position_embeddings", 2304) ** 0.5),
        deep_layers=tuple(vision.get("deepstack_visual_indexes", (8, 16, 24))),
        rope_theta=rope.get("rope_theta", 10_000.0),
    )
