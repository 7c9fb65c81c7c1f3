"""The vision towers, by family."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from .checkpoint import WeightSource
from .config import ModelConfig, SiglipConfig
from .qwen_vision import QwenVisionTower
from .siglip import SiglipEncoder


class VideoEncoder(Protocol):
    """What turns a prompt's pixels into what stands in the prompt for the video."""

    def encode(self, pixels: Tensor) -> Tensor:
        """Pixels, as the family's processor leaves them, to ``(placeholders, hidden_size)``."""
        ...


def load_encoder(config: ModelConfig, weights: WeightSource) -> VideoEncoder:
    """The encoder of a model. Raises CheckpointError where weights are missing or misshapen."""
    if isinstance(config.vision, SiglipConfig):
        return SiglipEncoder(config.vision, config.text.hidden_size, weights)
    return QwenVisionTower(config.vision, config.text.hidden_size, weights)
