"""Causal attention of a pass over the cache: token i of n sees all earlier rows, and itself."""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from .cache import KeyValueCache


class Attention(Protocol):
    """Writes a layer's keys and values into a cache, and attends over the cache's rows."""

    def __call__(self, layer: int, query: Tensor, key_value: Tensor) -> Tensor:
        """Return the attended values of the pass, ``(n, heads * head_dim)``.

        Args:
            layer: from 0.
            query: ``(kv_heads, group, n, head_dim)``: heads that share keys stand together.
            key_value: ``(2, 1, kv_heads, n, head_dim)``.
        """
        ...


class PromptAttention:
    """A whole prompt into an empty cache. It is long, so it uses a kernel that skips the masked half."""

    def __init__(self, cache: KeyValueCache, count: int) -> None:
        self._places = cache.places(0, count)

    def __call__(self, layer: int, query: Tensor, key_value: Tensor) -> Tensor:
        self._places[layer].copy_(key_value)
        keys, values = key_value
        heads = query.flatten(0, 1)[None]
        attended = F.scaled_dot_product_attention(heads, keys, values, is_causal=True, enable_gqa=query.shape[1] > 1)
        return attended[0].transpose(0, 1).reshape(query.shape[2], -1)


class AnswerAttention:
    """A few tokens after the first ``row`` rows of a cache.

    It is two matrix products and a softmax. With few queries they are as fast as a fused kernel, and they need no mask
    over all rows: only the pass's own rows are hidden from some of its tokens.
    """

    def __init__(self, cache: KeyValueCache, row: int, count: int) -> None:
        self._places = cache.places(row, count)
        self._keys, self._values = cache.transposed_keys(row + count), cache.values(row + count)
        self._scores: Tensor | None = None
        self._hidden = None
        if count > 1:
            first = self._values[0]
            self._hidden = torch.full((count, count), -math.inf, dtype=first.dtype, device=first.device).triu_(1)

    def __call__(self, layer: int, query: Tensor, key_value: Tensor) -> Tensor:
        self._places[layer].copy_(key_value)
        kv_heads, group, count, head_dim = query.shape
        keys, values = self._keys[layer], self._values[layer]
        scores = self._scores
        if scores is None or scores.device != keys.device:
            self._scores = scores = keys.new_empty(kv_heads, group * count, keys.shape[2])
        packed = query.reshape(kv_heads, group * count, head_dim)
        scores.baddbmm_(packed, keys, beta=0, alpha=head_dim**-0.5)
        if self._hidden is not None:
            scores.view(kv_heads, group, count, -1)[..., -count:].add_(self._hidden.to(scores.device))
        attended = torch.bmm(torch.softmax(scores, -1), values)
        if count == 1:
            return attended.view(1, -1)
        return attended.view(kv_heads, group, count, head_dim).permute(2, 0, 1, 3).reshape(count, -1)
