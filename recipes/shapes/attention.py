"""Attention over packed rows at the cost of what is seen: the video once, causally; then the
questions in chunks, each against the video and its own neighbourhood only.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn
from transformers import AttentionInterface

NAME = "packed"
_CHUNK = 128


@dataclass
class Chunk:
    """Query columns ``begin:end``, which see the prefix and columns ``low:end``."""

    begin: int
    end: int
    low: int
    mask: torch.Tensor


@dataclass
class Layout:
    """How packed rows may be attended: every row has the same prefix length."""

    prefix: int
    chunks: list[Chunk]

    @classmethod
    def of(cls, blocks: torch.Tensor, prefix: int) -> Layout:
        """The layout of rows whose tokens belong to the given blocks (0 is the prefix)."""
        length = blocks.shape[1]
        columns = torch.arange(length)
        chunks = []
        for begin in range(prefix, length, _CHUNK):
            end = min(length, begin + _CHUNK)
            same = blocks == blocks[:, begin : begin + 1]
            low = int(same.int().argmax(1).min())
            own = blocks[:, begin:end, None] == blocks[:, None, low:end]
            own &= columns[begin:end, None] >= columns[None, low:end]
            seen = torch.cat([own.new_ones(*own.shape[:2], prefix), own], dim=2)
            mask = torch.zeros(seen.shape).masked_fill_(~seen, float("-inf"))
            chunks.append(Chunk(begin, end, low, mask[:, None]))
        return cls(prefix, chunks)


def packed_attention(
    _module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    _mask: torch.Tensor | None,
    scaling: float | None = None,
    layout: Layout | None = None,
    **_: object,
) -> tuple[torch.Tensor, None]:
    """An attention function of transformers; ``layout`` comes from the language model's caller."""
    if layout is None:
        raise ValueError("packed attention needs a layout")
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = (x.repeat_interleave(groups, dim=1) for x in (key, value))
    p = layout.prefix
    prefix = (query[:, :, :p], key[:, :, :p], value[:, :, :p])
    parts = [F.scaled_dot_product_attention(*prefix, is_causal=True, scale=scaling)]
    for chunk in layout.chunks:
        keys, values = (torch.cat([x[:, :, :p], x[:, :, chunk.low : chunk.end]], dim=2) for x in (key, value))
        queries = query[:, :, chunk.begin : chunk.end]
        parts.append(F.scaled_dot_product_attention(queries, keys, values, attn_mask=chunk.mask, scale=scaling))
    return torch.cat(parts, dim=2).transpose(1, 2).contiguous(), None


AttentionInterface.register(NAME, packed_attention)
