"""From logits to the processed distribution, and from the distribution to a token."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pvlm_protocols.messages import SamplingOptions


def within_vocabulary(logits: Tensor, vocab_limit: int) -> Tensor:
    """``logits[..., :vocab_limit]``, a view: ids at or above the limit are padding."""
    return logits if logits.shape[-1] <= vocab_limit else logits[..., :vocab_limit]


def greedy(logits: Tensor, vocab_limit: int) -> int:
    """The id of the largest logit, float32 ``(V,)``; of equal ones the lowest id."""
    return int(_searchable(within_vocabulary(logits, vocab_limit)).argmax())


def greedy_rows(logits: Tensor, vocab_limit: int) -> list[int]:
    """`greedy` for each row of ``(n, V)``, with one argmax and one transfer."""
    choices: list[int] = _searchable(within_vocabulary(logits, vocab_limit)).argmax(-1).tolist()
    return choices


def best_rows(logits: Tensor, vocab_limit: int, count: int) -> list[tuple[int, ...]]:
    """The ids of the ``count`` largest logits in each row of float32 ``(n, V)``, the first as `greedy_rows` has it;
    fewer where fewer are finite.
    """
    scores = within_vocabulary(logits, vocab_limit)
    rows = _searchable(scores.clone() if count > 1 else scores)
    places = list(range(len(rows)))
    best = [rows.argmax(-1)]
    for _ in range(min(count, scores.shape[-1]) - 1):
        rows[places, best[-1]] = -np.inf
        best.append(rows.argmax(-1))
    return [tuple(dict.fromkeys(ids)) for ids in zip(*(ids.tolist() for ids in best), strict=True)]


def _searchable(scores: Tensor) -> Tensor | NDArray[np.float32]:
    """The same numbers where argmax is fast: on a CPU numpy's takes a tenth of torch's time, but it has no bfloat16."""
    return scores.detach().numpy() if scores.device.type == "cpu" and scores.dtype == torch.float32 else scores


def filtered_scores(logits: Tensor, settings: SamplingOptions, vocab_limit: int) -> Tensor:
    """Logits after temperature, top-k, top-p and min-p: float32 ``(n, min(V, vocab_limit))``, filtered ids at -inf.

    ``logits``: ``(n, V)``. Order and treatment of ties are those of transformers' ``TemperatureLogitsWarper``,
    ``TopKLogitsWarper``, ``TopPLogitsWarper`` and ``MinPLogitsWarper``: all ids that tie with the k-th best remain, and
    at least one id remains. Padding is cut off first, so a padded vocabulary gives the same bits. Raises ValueError at
    temperature 0.
    """
    if settings.temperature == 0:
        raise ValueError("temperature 0 has no distribution: take the argmax")
    scores = within_vocabulary(logits, vocab_limit).float()
    if settings.temperature != 1:
        scores = scores / settings.temperature
    if settings.top_k > 0:
        kth_best = scores.topk(min(settings.top_k, scores.shape[-1]), dim=-1).values[..., -1:]
        scores = scores.masked_fill(scores < kth_best, -torch.inf)
    if settings.top_p < 1:
        ascending, ids = scores.sort(dim=-1)
        drop = ascending.softmax(dim=-1).cumsum(dim=-1) <= 1 - settings.top_p
        drop[..., -1] = False
        scores = scores.masked_fill(drop.scatter(-1, ids, drop), -torch.inf)
    if settings.min_p > 0:
        probs = scores.softmax(dim=-1)
        best = probs.max(dim=-1, keepdim=True)
        drop = probs < settings.min_p * best.values
        scores = scores.masked_fill(drop.scatter(-1, best.indices, False), -torch.inf)
    return scores


def processed(logits: Tensor, settings: SamplingOptions, vocab_limit: int) -> Tensor:
    """The processed distribution, float32 ``(n, min(V, vocab_limit))``: the softmax of `filtered_scores`."""
    return filtered_scores(logits, settings, vocab_limit).softmax(dim=-1)


def normalised(probs: Tensor) -> NDArray[np.float64]:
    """One row ``(V,)`` in float64 on the CPU, with sum 1. The sum of a float32 softmax is off by about 1e-7."""
    exact = probs.cpu().numpy().astype(np.float64)
    total = exact.sum()
    if not 0 < total < np.inf:
        raise ValueError(f"the probabilities sum to {total}: the model's logits may hold NaN or inf")
    exact /= total
    return exact


def draw(weights: NDArray[np.float64], u: float) -> int:
    """The id at ``u`` in (0, 1) of the cumulative distribution of ``weights``, float64 ``(V,)``.

    The sum of ``weights`` need not be 1. An id of weight zero is never returned. Raises ValueError if the sum is zero,
    negative or not finite.
    """
    cumulative = weights.cumsum()
    total = cumulative[-1]
    if not 0 < total < np.inf:
        raise ValueError(f"cannot draw from weights that sum to {total}")
    # The first id whose cumulative weight is above u * total has a positive weight. If u * total rounds up to the total
    # (subnormal weights), there is none. Then the first id that reaches the total is the last one of positive weight.
    index = int(cumulative.searchsorted(u * total, side="right"))
    return index if index < len(weights) else int(cumulative.searchsorted(total, side="left"))
