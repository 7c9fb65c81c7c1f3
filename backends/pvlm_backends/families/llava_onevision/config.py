"""The keys of LLaVA-OneVision's config.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..config import ModelConfig, read_decoder, read_rotary, require, stored_dtype
from .images import ImageGrid

# Of transformers' Qwen2Config, for checkpoints that leave a value out.
_TEXT_DEFAULTS = {
    "hidden_size": 4096,
    "intermediate_size": 22016,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "vocab_size": 151936,
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10_000.0,
}


@dataclass(frozen=True)
class SiglipConfig:
    """A SigLIP tower and its projector."""

    hidden_size: int
    intermediate_size: int
    heads: int
    channels: int
    image_size: int
    patch_size: int
    layer_norm_eps: float
    activation: str
    feature_layers: tuple[int, ...]
    """The layers that feed the projector, counted from the front; 0 is the embeddings."""
    projector_activation: str
    projector_bias: bool
    images: ImageGrid

    @property
    def grid(self) -> int:
        """Patches along a side."""
        return self.image_size // self.patch_size


def read_config(folder: Path, settings: Mapping[str, Any]) -> ModelConfig[SiglipConfig]:
    """Read config.json. Raises CheckpointError for an unsupported value and names its key."""
    stored = settings.get("text_config") or {}
    require(folder, "text_config.model_type", stored.get("model_type", "qwen2"), "qwen2")
    text = {**_TEXT_DEFAULTS, **stored}
    head_dim = text.get("head_dim") or text["hidden_size"] // text["num_attention_heads"]
    return ModelConfig(
        decoder=read_decoder(settings, text, read_rotary(folder, text), head_dim, (0,) * (head_dim // 2)),
        vision=_read_siglip(folder, settings, settings.get("vision_config") or {}),
        dtype=stored_dtype(settings),
    )


def _read_siglip(folder: Path, settings: Mapping[str, Any], vision: Mapping[str, Any]) -> SiglipConfig:
    tower = "siglip_vision_model"
    require(folder, "vision_config.model_type", vision.get("model_type", tower), tower)
    strategy = settings.get("vision_feature_select_strategy", "full")
    require(folder, "vision_feature_select_strategy", strategy, "full")  # pooling needs the whole grid of patches
    layers = vision.get("num_hidden_layers", 12)
    image_size, patch_size = vision.get("image_size", 224), vision.get("patch_size", 16)
    chosen = settings.get("vision_feature_layer", -1)
    return SiglipConfig(
        hidden_size=vision.get("hidden_size", 768),
        intermediate_size=vision.get("intermediate_size", 3072),
        heads=vision.get("num_attention_heads", 12),
        channels=vision.get("num_channels", 3),
        image_size=image_size,
        patch_size=patch_size,
        layer_norm_eps=vision.get("layer_norm_eps", 1e-6),
        activation=vision.get("hidden_act", "gelu_pytorch_tanh"),
        feature_layers=tuple(range(layers + 1)[layer] for layer in ([chosen] if isinstance(chosen, int) else chosen)),
        projector_activation=settings.get("projector_hidden_act", "gelu"),
        projector_bias=settings.get("multimodal_projector_bias", True),
        images=ImageGrid(settings, image_size, image_size // patch_size),
    )
