"""Accepting and correcting drafted tokens. Pure functions; `coupling` gives them one interface.

Speculative sampling follows Leviathan et al., *Fast Inference from Transformers via Speculative Decoding* (2211.17192),
algorithm 1. A token x drawn from q is kept with probability ``min(1, p(x)/q(x))``, else replaced by a draw from
``norm(max(0, p - q))``. The result is distributed as p for every q.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pvlm.speculation.proposals import Proposal
from pvlm.speculation.randomness import gumbel_noise
from pvlm.speculation.sampling import draw


def gumbel_choices(scores: Tensor, seed: int, positions: Sequence[int], ids: Tensor | None = None) -> list[int]:
    """Draw one token for each row by the Gumbel-max trick: ``argmax(score + noise)``, in float64.

    ``scores``: `filtered_scores`, ``(n, V)``; row i decides answer index ``positions[i]``. A constant added to a row
    changes nothing, so log-probabilities are valid scores too. Filtered ids (-inf) are never chosen. ``ids``: int64
    ``(V,)``, the ids of the columns (None: 0 to V - 1). The draft passes its best ids only. If the full choice is among
    them, the draft makes the same choice.
    """
    columns = torch.arange(scores.shape[-1], device=scores.device) if ids is None else ids
    best: list[int] = (gumbel_noise(seed, positions, columns) + scores).argmax(dim=-1).tolist()
    return best if ids is None else [int(ids[column]) for column in best]


def gumbel_ranks(scores: Tensor, seed: int, position: int, ids: Tensor, count: int) -> list[int]:
    """The ``count`` best of ``ids`` ``(V,)`` by score and noise, the choice of `gumbel_choices` first. Filtered ids are
    left out.
    """
    noisy = (gumbel_noise(seed, [position], ids) + scores)[0]
    if count == 1:
        return [int(ids[noisy.argmax()])]
    best = noisy.topk(min(count, len(ids)))
    return [int(ids[place]) for place, score in zip(best.indices, best.values, strict=True) if score > -torch.inf]


def speculative_accept(p: float, q: float, u: float) -> bool:
    """Whether to keep a token of probability ``q`` > 0 at the draft and ``p`` at the target, for ``u`` in (0, 1).

    ``u < min(1, p / q)``, without the division.
    """
    return u * q < p


def residual_draw(p: NDArray[np.float64], proposal: Proposal, u: float) -> int:
    """The token that replaces a rejected one: the draw at ``u`` from ``norm(max(0, p - q))``.

    ``p``: float64 ``(V,)``, with sum 1. If p = q, no residual mass is left and a rejection has probability zero; the
    draw is then from p.
    """
    residual = p.copy()
    residual[proposal.ids] -= proposal.distribution()
    np.maximum(residual, 0, out=residual)
    return draw(residual if residual.any() else p, u)
