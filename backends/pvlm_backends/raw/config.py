"""The shapes of a model, from config.json as transformers 4 and 5 write it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pvlm_protocols.backend import CheckpointError


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
    rope_sections: tuple[int, ...]
    """How many of the ``head_dim / 2`` frequencies turn with each axis of a position."""
    tied_head: bool


@dataclass(frozen=True)
class SiglipConfig:
    """A SigLIP tower, which of its layers feed the projector (0: the embeddings; counted from the front), and that."""

    hidden_size: int
    intermediate_size: int
    heads: int
    channels: int
    image_size: int
    patch_size: int
    layer_norm_eps: float
    activation: str
    feature_layers: tuple[int, ...]
    projector_activation: str
    projector_bias: bool

    @property
    def grid(self) -> int:
        """Patches along a side."""
        return self.image_size // self.patch_size


@dataclass(frozen=True)
class QwenVisionConfig:
    """Qwen2.5-VL's tower."""

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


@dataclass(frozen=True)
class ModelConfig:
    """A model of one of the families."""

    family: str
    text: TextConfig
    vision: SiglipConfig | QwenVisionConfig
    dtype: str
    """The checkpoint's own: ``float32``, ``bfloat16`` or ``float16``."""

    @classmethod
    def from_settings(cls, folder: Path, settings: Mapping[str, Any]) -> ModelConfig:
        """Read config.json. Raises CheckpointError, naming the key, for what this implementation does not do."""
        if settings.get("quantization_config") is not None:
            raise CheckpointError(f"{folder}/config.json: quantization_config: this backend reads no quantised weights")
        family = settings.get("model_type")
        vision = settings.get("vision_config") or {}
        match family:
            case "llava_onevision":
                text = settings.get("text_config") or {}
                return cls(
                    family=family,
                    text=_llava_text(folder, settings, text),
                    vision=_siglip(folder, settings, vision),
                    dtype=_own_dtype(settings, text),
                )
            case "qwen2_5_vl":
                # As released, the text's keys stand beside vision_config.
                text = settings.get("text_config") or settings
                return cls(
                    family=family,
                    text=_qwen_text(folder, settings, text),
                    vision=_qwen_vision(folder, vision),
                    dtype=_own_dtype(settings, text),
                )
        raise CheckpointError(f"{folder} is a {family!r} checkpoint, which this backend does not support")


def _llava_text(folder: Path, settings: Mapping[str, Any], text: Mapping[str, Any]) -> TextConfig:
    _require(folder, "text_config.model_type", text.get("model_type", "qwen2"), "qwen2")
    heads = text.get("num_attention_heads", 32)
    hidden_size = text.get("hidden_size", 4096)
    head_dim = text.get("head_dim") or hidden_size // heads
    rope = _rope(folder, text)
    return TextConfig(
        hidden_size=hidden_size,
        intermediate_size=text.get("intermediate_size", 22016),
        layers=text.get("num_hidden_layers", 32),
        heads=heads,
        kv_heads=text.get("num_key_value_heads", 32) or heads,
        head_dim=head_dim,
        vocab_size=text.get("vocab_size", 151936),
        max_positions=text.get("max_position_embeddings", 32768),
        rms_norm_eps=text.get("rms_norm_eps", 1e-6),
        rope_theta=rope.get("rope_theta") or text.get("rope_theta", 10_000.0),
        rope_sections=(head_dim // 2,),
        tied_head=_tied(settings, text),
    )


def _qwen_text(folder: Path, settings: Mapping[str, Any], text: Mapping[str, Any]) -> TextConfig:
    found = text.get("model_type", "qwen2_5_vl_text")
    _require(folder, "text_config.model_type", found.removesuffix("_text"), "qwen2_5_vl")
    heads = text.get("num_attention_heads", 64)
    hidden_size = text.get("hidden_size", 8192)
    head_dim = hidden_size // heads
    rope = _rope(folder, text)
    sections = tuple(rope.get("mrope_section", (16, 24, 24)))
    if len(sections) != 3 or sum(sections) != head_dim // 2:
        raise CheckpointError(
            f"{folder}/config.json: mrope_section is {list(sections)}; it must be three numbers that add up to half of "
            f"a head, {head_dim // 2}"
        )
    return TextConfig(
        hidden_size=hidden_size,
        intermediate_size=text.get("intermediate_size", 29568),
        layers=text.get("num_hidden_layers", 80),
        heads=heads,
        kv_heads=text.get("num_key_value_heads", 8) or heads,
        head_dim=head_dim,
        vocab_size=text.get("vocab_size", 152064),
        max_positions=text.get("max_position_embeddings", 32768),
        rms_norm_eps=text.get("rms_norm_eps", 1e-5),
        rope_theta=rope.get("rope_theta") or text.get("rope_theta", 1_000_000.0),
        rope_sections=sections,
        tied_head=_tied(settings, text),
    )


def _rope(folder: Path, text: Mapping[str, Any]) -> Mapping[str, Any]:
    """The rotary settings; also refuses what changes attention in ways that the decoder does not know."""
    rope: Mapping[str, Any] = text.get("rope_parameters") or text.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    _require(folder, "rope_type", "default" if kind == "mrope" else kind, "default")
    _require(folder, "text_config.hidden_act", text.get("hidden_act", "silu"), "silu")
    sliding = text.get("use_sliding_window", False) or "sliding_attention" in (text.get("layer_types") or ())
    _require(folder, "text_config.use_sliding_window", sliding, False)
    return rope


def _tied(settings: Mapping[str, Any], text: Mapping[str, Any]) -> bool:
    return bool(settings.get("tie_word_embeddings", False) or text.get("tie_word_embeddings", False))


def _own_dtype(settings: Mapping[str, Any], text: Mapping[str, Any]) -> str:
    return settings.get("dtype") or settings.get("torch_dtype") or text.get("torch_dtype") or "float32"


def _siglip(folder: Path, settings: Mapping[str, Any], vision: Mapping[str, Any]) -> SiglipConfig:
    tower = "siglip_vision_model"
    _require(folder, "vision_config.model_type", vision.get("model_type", tower), tower)
    strategy = settings.get("vision_feature_select_strategy", "full")
    _require(folder, "vision_feature_select_strategy", strategy, "full")  # pooling needs the whole grid of patches
    layers = vision.get("num_hidden_layers", 12)
    chosen = settings.get("vision_feature_layer", -1)
    return SiglipConfig(
        hidden_size=vision.get("hidden_size", 768),
        intermediate_size=vision.get("intermediate_size", 3072),
        heads=vision.get("num_attention_heads", 12),
        channels=vision.get("num_channels", 3),
        image_size=vision.get("image_size", 224),
        patch_size=vision.get("patch_size", 16),
        layer_norm_eps=vision.get("layer_norm_eps", 1e-6),
        activation=vision.get("hidden_act", "gelu_pytorch_tanh"),
        feature_layers=tuple(range(layers + 1)[layer] for layer in ([chosen] if isinstance(chosen, int) else chosen)),
        projector_activation=settings.get("projector_hidden_act", "gelu"),
        projector_bias=settings.get("multimodal_projector_bias", True),
    )


def _qwen_vision(folder: Path, vision: Mapping[str, Any]) -> QwenVisionConfig:
    _require(folder, "vision_config.hidden_act", vision.get("hidden_act", "silu"), "silu")
    _require(folder, "vision_config.in_channels", vision.get("in_channels", 3), 3)
    patch, merge = vision.get("patch_size", 14), vision.get("spatial_merge_size", 2)
    rope = vision.get("rope_parameters") or {}
    _require(folder, "vision_config.rope_parameters.rope_type", rope.get("rope_type", "axial"), "axial")
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


def _require(folder: Path, key: str, found: object, supported: object) -> None:
    if found != supported:
        raise CheckpointError(f"{folder}/config.json: {key} is {found!r}; this backend supports only {supported!r}")
