"""The question's attention to each video token, which fused attention kernels do not return."""

from __future__ import annotations

import math

import torch


def mean_attention(query: torch.Tensor, keys: torch.Tensor, rows: torch.Tensor, video: torch.Tensor) -> torch.Tensor:
    """Return the mean attention probability that n tokens give to each video token, float32 ``(m,)``.

    The softmax is over all rows that a token sees, in float32. The mean is over heads and tokens; it is 0 without
    tokens. Only these tokens' rows of the attention matrix are computed: ``heads * n * rows`` numbers.

    Args:
        query: ``(heads, n, head_dim)``, rotated.
        keys: ``(kv_heads, rows, head_dim)``, rotated; heads that share a key head are neighbours.
        rows: int64 ``(n,)``, rows of the tokens; each sees the rows up to its own.
        video: int64 ``(m,)``, rows of the video tokens.
    """
    heads, count, head_dim = query.shape
    keys = keys.float()
    by_key_head = query.float().reshape(len(keys), -1, head_dim)
    scores = (by_key_head @ keys.transpose(1, 2) / math.sqrt(head_dim)).view(heads, count, -1)
    later = torch.arange(keys.shape[1], device=rows.device) > rows[:, None]
    probabilities = scores.masked_fill_(later, -math.inf).softmax(dim=-1)
    return probabilities.sum(dim=(0, 1))[video] / max(1, heads * count)
