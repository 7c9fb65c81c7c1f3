"""Qwen3-VL, dense: a time in text before each pair of frames, interleaved positions, and features for early layers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..config import ModelConfig
from ..family import Family, VideoTower
from ..patches import transformers_image_patches, transformers_patches
from .config import Qwen3VisionConfig, read_config
from .processor import Qwen3VLProcessor

if TYPE_CHECKING:
    from ...checkpoint import WeightSource

__all__ = ["QWEN3_VL", "Qwen3VLProcessor"]


def _load_tower(config: ModelConfig[Qwen3VisionConfig], weights: WeightSource) -> VideoTower:
    from .tower import Qwen3VisionTower

    return Qwen3VisionTower(config.vision, config.decoder.hidden_size, weights)


QWEN3_VL = Family(
    model_type="qwen3_vl",
    processor=Qwen3VLProcessor,
    read_config=read_config,
    load_tower=_load_tower,
    weight_prefixes=(("model.", ""),),
    transformers_video=transformers_patches,
    transformers_image=transformers_image_patches,
)
