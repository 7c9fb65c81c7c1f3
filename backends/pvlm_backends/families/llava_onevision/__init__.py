"""LLaVA-OneVision: a SigLIP tower with pooling, square frames, and positions with one axis."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..config import ModelConfig
from ..family import Family, VideoTower
from .config import SiglipConfig, read_config
from .processor import LlavaOnevisionProcessor

if TYPE_CHECKING:
    from torch import Tensor

    from ...checkpoint import WeightSource

__all__ = ["LLAVA_ONEVISION", "LlavaOnevisionProcessor"]


def _load_tower(config: ModelConfig[SiglipConfig], weights: WeightSource) -> VideoTower:
    from .tower import LlavaOnevisionTower

    return LlavaOnevisionTower(config.vision, config.decoder.hidden_size, weights)


def _transformers_video(pixels: Tensor) -> dict[str, Tensor]:
    return {"pixel_values_videos": pixels[None]}


def _transformers_image(pixels: Tensor, size: tuple[int, int]) -> dict[str, Tensor]:
    import torch

    alone = len(pixels) > 1  # transformers cuts an image into pieces only if it is the prompt's only one
    return {
        "pixel_values": pixels[None],
        "image_sizes": torch.tensor([size]),
        "batch_num_images": torch.tensor([1 if alone else 2]),
    }


LLAVA_ONEVISION = Family(
    model_type="llava_onevision",
    processor=LlavaOnevisionProcessor,
    read_config=read_config,
    load_tower=_load_tower,
    weight_prefixes=(
        ("model.", ""),
        ("language_model.lm_head.", "lm_head."),
        ("language_model.model.", "language_model."),
        ("vision_tower.vision_model.", "vision_tower."),
    ),
    transformers_video=_transformers_video,
    transformers_image=_transformers_image,
)
