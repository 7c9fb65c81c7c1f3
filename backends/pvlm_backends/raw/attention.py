"""Causal attention of a pass over caches: token i of n sees all earlier rows of its session, and itself."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from .cache import Part, Rows


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
    """A prompt in pieces, each into one of ``segments``. Name all pieces before the first one runs.

    It is long, so it uses a fused kernel. The first piece of all skips the masked half. A later one sees all rows
    before it, and needs a mask: a part of one mask that serves all pieces. Rows of several segments are copied side by
    side for a layer, because the kernel takes no segments.

    The arithmetic of a piece depends on its own place alone, never on what follows or on who has computed the rows
    before it. So a prefill on a kept prefix has the bits of a whole one.
    """

    def __init__(self, segments: Sequence[Rows]) -> None:
        self._filled = [rows.cache.filled(rows.count) for rows in segments]
        self._before = [sum(rows.count for rows in segments[:index]) for index in range(len(segments))]
        self._earlier = 0  # rows before the last piece
        self._longest = 0  # tokens of a piece that needs a mask
        self._mask: Tensor | None = None

    def piece(self, segment: int, start: int, stop: int) -> Attention:
        """The attention of a segment's tokens from ``start`` to ``stop``."""
        before = self._before[segment] + start
        if before:
            self._earlier, self._longest = max(self._earlier, before), max(self._longest, stop - start)

        def attend(layer: int, query: Tensor, key_value: Tensor) -> Tensor:
            keys, values = (rows[:, :, :stop] for rows in self._filled[segment][2 * layer : 2 * layer + 2])
            new_keys, new_values = key_value
            keys[:, :, start:], values[:, :, start:] = new_keys, new_values
            grouped = query.shape[1] > 1
            heads = query.flatten(0, 1)[None]
            if before == 0:
                found = F.scaled_dot_product_attention(heads, new_keys, new_values, is_causal=True, enable_gqa=grouped)
            else:
                if segment:
                    earlier = [filled[2 * layer : 2 * layer + 2] for filled in self._filled[:segment]]
                    keys, values = (torch.cat(parts, dim=2) for parts in zip(*earlier, (keys, values), strict=True))
                first = self._earlier - before
                mask = self._whole_mask(keys)[: stop - start, first : first + keys.shape[2]]
                found = F.scaled_dot_product_attention(heads, keys, values, attn_mask=mask, enable_gqa=grouped)
            return found[0].transpose(0, 1).reshape(stop - start, -1)

        return attend

    def _whole_mask(self, keys: Tensor) -> Tensor:
        """For the longest piece and the most rows before it."""
        if self._mask is None:
            longest = self._longest
            hidden = torch.full((longest, longest), -math.inf, dtype=keys.dtype, device=keys.device).triu_(1)
            self._mask = torch.cat([hidden.new_zeros(longest, self._earlier), hidden], dim=1)
        return self._mask.to(keys.device)


class AnswerAttention:
    """A few tokens of one session.

    It is two matrix products and a softmax. With few queries they are as fast as a fused kernel, and they need no mask
    over all rows: only the pass's own rows are hidden from some of its tokens.
    """

    def __init__(self, part: Part) -> None:
        own, count = part.rows[-1], part.tokens
        self._places = own.cache.places(own.count, count)
        self._keys = [rows.cache.transposed_keys(rows.count) for rows in part.seen]
        self._values = [rows.cache.values(rows.count) for rows in part.seen]
        self._sizes = [rows.count for rows in part.seen]
        self._scores: Tensor | None = None
        self._hidden = None
        if count > 1:
            first = self._values[0][0]
            self._hidden = torch.full((count, count), -math.inf, dtype=first.dtype, device=first.device).triu_(1)

    def __call__(self, layer: int, query: Tensor, key_value: Tensor) -> Tensor:
        self._places[layer].copy_(key_value)
        kv_heads, group, count, head_dim = query.shape
        scores = self._scores
        if scores is None or scores.device != query.device:
            self._scores = scores = query.new_empty(kv_heads, group * count, sum(self._sizes))
        packed = query.reshape(kv_heads, group * count, head_dim)
        for keys, found in zip(self._keys, torch.split(scores, self._sizes, -1), strict=True):
            found.baddbmm_(packed, keys[layer], beta=0, alpha=head_dim**-0.5)
        if self._hidden is not None:
            scores.view(kv_heads, group, count, -1)[..., -count:].add_(self._hidden.to(scores.device))
        attended = None
        for shares, values in zip(torch.split(torch.softmax(scores, -1), self._sizes, -1), self._values, strict=True):
            found = torch.bmm(shares, values[layer])
            attended = found if attended is None else attended.add_(found)
        assert attended is not None  # there is at least one segment
        if count == 1:
            return attended.view(1, -1)
        return attended.view(kv_heads, group, count, head_dim).permute(2, 0, 1, 3).reshape(count, -1)


class SharedAttention:
    """A few tokens of each of several sessions, one part after another."""

    def __init__(self, parts: Sequence[Part]) -> None:
        self._sizes = [part.tokens for part in parts]
        self._parts = [AnswerAttention(part) for part in parts]

    def __call__(self, layer: int, query: Tensor, key_value: Tensor) -> Tensor:
        pieces = zip(
            self._parts, torch.split(query, self._sizes, 2), torch.split(key_value, self._sizes, 3), strict=True
        )
        return torch.cat([attention(layer, queries, keys_values) for attention, queries, keys_values in pieces])


def answer_attention(parts: Sequence[Part]) -> Attention:
    """The attention of a short pass over one or more parts."""
    return AnswerAttention(parts[0]) if len(parts) == 1 else SharedAttention(parts)
