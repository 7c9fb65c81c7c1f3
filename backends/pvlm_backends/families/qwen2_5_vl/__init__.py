"""Qwen2.5-VL: a tower with windows of attention, frames of any size, and positions of time, row and column."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..config import ModelConfig
from ..family import Family, VideoTower
from ..patches import transformers_image_patches, transformers_patches
from .config import QwenVisionConfig, read_config
from .processor import Qwen25VLProcessor

if TYPE_CHECKING:
    from ...checkpoint import WeightSource

__all__ = ["QWEN2_5_VL", "Qwen25VLProcessor"]


def _load_tower(config: ModelConfig[QwenVisionConfig], weights: WeightSource) -> VideoTower:
    from .tower import QwenVisionTower

    return QwenVisionTower(config.vision, config.decoder.hidden_size, weights)


QWEN2_5_VL = Family(
    model_type="qwen2_5_vl",
    processor=Qwen25VLProcessor,
    read_config=read_config,
    load_tower=_load_tower,
    weight_prefixes=(
        ("model.", ""),
        # As released, the decoder's parts stand beside "visual.".
        ("layers.", "language_model.layers."),
        ("embed_tokens.", "language_model.embed_tokens."),
        ("norm.", "language_model.norm."),
    ),
    transformers_video=transformers_patches,
    transformers_image=transformers_image_patches,
)
