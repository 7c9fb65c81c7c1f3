"""Accepting and correcting drafted tokens. Pure functions; `coupling` puts them behind one interface.

Speculative sampling follows Leviathan et al., *Fast Inference from Transformers via Speculative Decoding* (2211.17192),
Algorithm 1: a token x drawn from q is kept with probability ``min(1, p(x)/q(x))``, else replaced by a draw from
``norm(max(0, p - q))``, and what comes out is distributed as p, whatever q is.
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

    ``scores``: `filtered_scores`, ``(n, V)``, row i decides answer index ``positions[i]``. A constant that is added to
    a row changes nothing, so log-probabilities serve as well. Filtered ids (-inf) are never chosen. ``ids``: int64
    ``(V,)``, what the columns stand for (None: 0 to V - 1). The draft passes its best ids only, and gets the full
    choice whenever that is among them.
    """
    columns = torch.arange(scores.shape[-1], device=scores.device) if ids is None else ids
    best: list[int] = (gumbel_noise(seed, positions, columns) + scores).argmax(dim=-1).tolist()
    return best if ids is None else [int(ids[column]) for column in best]


def speculative_accept(p: float, q: float, u: float) -> bool:
    """Whether a token of probability ``q`` > 0 at the draft and ``p`` at the target is kept, at ``u`` in (0, 1).

    ``u < min(1, p / q)``, without the division.
    """
    return u * q < p


def residual_draw(p: NDArray[np.float64], proposal: Proposal, u: float) -> int:
    """The token that replaces a rejected one: the draw at ``u`` from ``norm(max(0, p - q))``.

    ``p``: float64 ``(V,)``, summing to 1. Where no residual mass is left (p = q, and a rejection has probability zero)
    the draw is from p.
    """
    residual = p.copy()
    residual[proposal.ids] -= proposal.distribution()
    np.maximum(residual, 0, out=residual)
    return draw(residual if residual.any() else p, u)
