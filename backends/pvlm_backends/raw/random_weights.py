"""Random weights for a model that is only timed, drawn on the device."""

from __future__ import annotations

import torch

from ..checkpoint import WeightSource
from ..families.config import DecoderConfig

_DEVIATION = 0.02
"""Standard deviation; transformers initialises these models with it."""


class RandomWeights(WeightSource):
    """Normally distributed matrices, biases of zero and norms of one.

    Args:
        config: the decoder's dimensions.
        dtype: of the weights.
        device: where they are drawn, unless another device is given.
    """

    def __init__(self, config: DecoderConfig, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__(dtype, device)
        self._config = config

    def __contains__(self, name: str) -> bool:
        return name != "lm_head.weight" or not self._config.tied_head

    def numel(self, prefix: str = "") -> int:
        """See `WeightSource.numel`. Counts the decoder alone, without the vision tower."""
        config = self._config
        width, head = config.hidden_size, config.vocab_size * config.hidden_size
        projected = (config.heads + 2 * config.kv_heads) * config.head_dim
        matrices = projected + config.heads * config.head_dim + 3 * config.intermediate_size
        layer = width * matrices + config.qkv_bias * projected + config.qk_norm * 2 * config.head_dim + 2 * width
        if prefix == "lm_head.":
            return 0 if config.tied_head else head
        if prefix:
            return layer
        return config.layers * layer + head + self.numel("lm_head.") + width

    def fill(self, destination: torch.Tensor, name: str, *shape: int) -> None:
        """Draw a weight into ``destination``; see `WeightSource.fill`."""
        if name.endswith(".bias"):
            destination.zero_()
        elif "norm" in name:
            destination.fill_(1)
        else:
            destination.normal_(0, _DEVIATION)
        self._taken[name] = destination.numel()
