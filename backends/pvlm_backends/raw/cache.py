"""The KV cache: one block of memory on each device, written in place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, groupby

import torch

from ..families.config import DecoderConfig


class KeyValueCache:
    """Keys and values of every layer, ``(layers, 2, 1, kv_heads, rows, head_dim)`` for each device, initially zero.

    It keeps no length; the session counts its rows.

    Args:
        config: the decoder's dimensions.
        rows: tokens to make room for.
        dtype: the decoder's.
        devices: one for each layer; equal ones are adjacent.
    """

    def __init__(self, config: DecoderConfig, rows: int, dtype: torch.dtype, devices: Sequence[torch.device]) -> None:
        shape = (2, 1, config.kv_heads, rows, config.head_dim)
        self._buffers = [
            torch.zeros((len(list(layers)), *shape), dtype=dtype, device=device) for device, layers in groupby(devices)
        ]
        self._by_layer_and_kind = [buffer.flatten(0, 1) for buffer in self._buffers]

    @property
    def nbytes(self) -> int:
        """Memory of all rows, in bytes."""
        return sum(buffer.nbytes for buffer in self._buffers)

    @property
    def start(self) -> torch.Tensor:
        """The keys of the first layer, at the start of memory with the shape above."""
        return self._buffers[0][0, 0]

    # Each method returns the views of all layers at once: a call for each layer would cost as much as the arithmetic
    # of a small model.

    def places(self, row: int, count: int) -> tuple[torch.Tensor, ...]:
        """For each layer, the places of ``count`` tokens from ``row`` on: ``(2, 1, kv_heads, count, head_dim)``."""
        return tuple(chain.from_iterable(buffer.narrow(4, row, count).unbind(0) for buffer in self._buffers))

    def filled(self, rows: int) -> tuple[torch.Tensor, ...]:
        """Keys of layer 1, its values, keys of layer 2, ...: the first rows, each ``(1, kv_heads, rows, head_dim)``."""
        return tuple(chain.from_iterable(buffer.narrow(3, 0, rows).unbind(0) for buffer in self._by_layer_and_kind))

    def transposed_keys(self, rows: int) -> tuple[torch.Tensor, ...]:
        """For each layer, the first rows' keys: ``(kv_heads, head_dim, rows)``."""
        keys = (buffer[:, 0, 0, :, :rows].transpose(2, 3).unbind(0) for buffer in self._buffers)
        return tuple(chain.from_iterable(keys))

    def values(self, rows: int) -> tuple[torch.Tensor, ...]:
        """For each layer, the first rows' values: ``(kv_heads, rows, head_dim)``."""
        return tuple(chain.from_iterable(buffer[:, 1, 0, :, :rows].unbind(0) for buffer in self._buffers))


@dataclass(frozen=True)
class Rows:
    """The first ``count`` rows of a cache."""

    cache: KeyValueCache
    count: int


@dataclass(frozen=True)
class Part:
    """``tokens`` of one session in a pass. They see ``rows``, one segment after another, and themselves; they are
    written to the last segment, after its rows. Sessions may share the other segments.
    """

    rows: tuple[Rows, ...]
    tokens: int

    @property
    def seen(self) -> tuple[Rows, ...]:
        """``rows``, and after them the tokens' own."""
        own = self.rows[-1]
        return *self.rows[:-1], Rows(own.cache, own.count + self.tokens)
