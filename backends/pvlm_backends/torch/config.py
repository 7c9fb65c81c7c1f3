"""The shapes of a LLaVA-OneVision model, from config.json as transformers 4 and 5 write it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pvlm_protocols.backend import CheckpointError

from ..processing.llava_onevision import check_model_type


@dataclass(frozen=True)
class TextConfig:
    """A Qwen2 decoder. Defaults for absent keys are transformers'."""

    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab_size: int
    max_positions: int
    rms_norm_eps: float
    rope_theta: float
    tied_head: bool


@dataclass(frozen=True)
class VisionConfig:
    """A SigLIP tower, and which of its layers feed the projector (0: the embeddings; counted from the front)."""

    hidden_size: int
    intermediate_size: int
    heads: int
    channels: int
    image_size: int
    patch_size: int
    layer_norm_eps: float
    activation: str
    feature_layers: tuple[int, ...]

    @property
    def grid(self) -> int:
        """Patches along a side."""
        return self.image_size // self.patch_size


@dataclass(frozen=True)
class ModelConfig:
    """A LLaVA-OneVision model."""

    text: TextConfig
    vision: VisionConfig
    projector_activation: str
    projector_bias: bool
    dtype: str
    """The checkpoint's own: ``float32``, ``bfloat16`` or ``float16``."""

    @classmethod
    def from_settings(cls, folder: Path, settings: Mapping[str, Any]) -> ModelConfig:
        """Read config.json. Raises CheckpointError, naming the key, for what this implementation does not do."""
        check_model_type(folder, dict(settings))
        if settings.get("quantization_config") is not None:
            raise CheckpointError(f"{folder}/config.json: quantization_config: this backend reads no quantised weights")
        text, vision = settings.get("text_config") or {}, settings.get("vision_config") or {}
        _require(folder, "text_config.model_type", text.get("model_type", "qwen2"), "qwen2")
        tower = "siglip_vision_model"
        _require(folder, "vision_config.model_type", vision.get("model_type", tower), tower)
        strategy = settings.get("vision_feature_select_strategy", "full")
        _require(folder, "vision_feature_select_strategy", strategy, "full")  # pooling needs the whole grid of patches
        return cls(
            text=_text_config(folder, settings, text),
            vision=_vision_config(settings, vision),
            projector_activation=settings.get("projector_hidden_act", "gelu"),
            projector_bias=settings.get("multimodal_projector_bias", True),
            dtype=settings.get("dtype") or settings.get("torch_dtype") or text.get("torch_dtype") or "float32",
        )


def _text_config(folder: Path, settings: Mapping[str, Any], text: Mapping[str, Any]) -> TextConfig:
    rope = text.get("rope_parameters") or text.get("rope_scaling") or {}
    _require(folder, "rope_type", rope.get("rope_type", rope.get("type", "default")), "default")
    _require(folder, "text_config.hidden_act", text.get("hidden_act", "silu"), "silu")
    sliding = text.get("use_sliding_window", False) or "sliding_attention" in (text.get("layer_types") or ())
    _require(folder, "text_config.use_sliding_window", sliding, False)
    hidden_size, heads = text.get("hidden_size", 4096), text.get("num_attention_heads", 32)
    return TextConfig(
        hidden_size=hidden_size,
        intermediate_size=text.get("intermediate_size", 22016),
        layers=text.get("num_hidden_layers", 32),
        heads=heads,
        kv_heads=text.get("num_key_value_heads", 32) or heads,
        head_dim=text.get("head_dim") or hidden_size // heads,
        vocab_size=text.get("vocab_size", 151936),
        max_positions=text.get("max_position_embeddings", 32768),
        rms_norm_eps=text.get("rms_norm_eps", 1e-6),
        rope_theta=rope.get("rope_theta") or text.get("rope_theta", 10000.0),
        tied_head=settings.get("tie_word_embeddings", False) or text.get("tie_word_embeddings", False),
    )


def _vision_config(settings: Mapping[str, Any], vision: Mapping[str, Any]) -> VisionConfig:
    layers = vision.get("num_hidden_layers", 12)
    chosen = settings.get("vision_feature_layer", -1)
    return VisionConfig(
        hidden_size=vision.get("hidden_size", 768),
        intermediate_size=vision.get("intermediate_size", 3072),
        heads=vision.get("num_attention_heads", 12),
        channels=vision.get("num_channels", 3),
        image_size=vision.get("image_size", 224),
        patch_size=vision.get("patch_size", 16),
        layer_norm_eps=vision.get("layer_norm_eps", 1e-6),
        activation=vision.get("hidden_act", "gelu_pytorch_tanh"),
        feature_layers=tuple(range(layers + 1)[layer] for layer in ([chosen] if isinstance(chosen, int) else chosen)),
    )


def _require(folder: Path, key: str, found: object, supported: object) -> None:
    if found != supported:
        raise CheckpointError(f"{folder}/config.json: {key} is {found!r}; this backend supports only {supported!r}")
