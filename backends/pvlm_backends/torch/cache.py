"""The KV cache: one block of memory, written in place."""

from __future__ import annotations

import torch

from .config import TextConfig


class KeyValueCache:
    """Keys and values of every layer, ``(layers, 2, 1, kv_heads, rows, head_dim)``, zero at first.

    It keeps no length: who writes rows knows how many count.
    """

    def __init__(self, config: TextConfig, rows: int, dtype: torch.dtype, device: torch.device) -> None:
        shape = (config.layers, 2, 1, config.kv_heads, rows, config.head_dim)
        self._buffer = torch.zeros(shape, dtype=dtype, device=device)
        self._by_layer_and_kind = self._buffer.flatten(0, 1)

    # Both give the views of all layers at once: a call for each layer would cost as much as the arithmetic of a
    # small model.

    def places(self, row: int, count: int) -> tuple[torch.Tensor, ...]:
        """For each layer, where ``count`` tokens from ``row`` on are written: ``(2, 1, kv_heads, count, head_dim)``."""
        return self._buffer.narrow(4, row, count).unbind(0)

    def filled(self, rows: int) -> tuple[torch.Tensor, ...]:
        """Keys of layer 1, its values, keys of layer 2, ...: the first rows, each ``(1, kv_heads, rows, head_dim)``."""
        return self._by_layer_and_kind.narrow(3, 0, rows).unbind(0)
