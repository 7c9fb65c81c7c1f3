"""Proposals: the distributions of drafted tokens, small enough for the wire.

A proposal is the top of the draft's processed distribution, rounded to float32 *before* the draw. Both sides compute
the distribution from these float32 values by `Proposal.distribution`. So the ``q`` that the target divides by is, bit
for bit, the ``q`` that the draft drew from. For ids that are not listed q is 0.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from itertools import accumulate
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

PROPOSAL_SIZE = 64
"""Most ids in a proposal. Under Gumbel coupling the draft chooses among as many."""

_SUM_TOLERANCE = 1e-4


class InvalidProposal(ValueError):
    """A proposal that is malformed, or excludes its token."""


class Proposal(NamedTuple):
    """``ids`` int32 and ``probs`` float32, both ``(k,)``, the most probable first."""

    ids: NDArray[np.int32]
    probs: NDArray[np.float32]

    def distribution(self) -> NDArray[np.float64]:
        """``q`` over ``ids``, float64 ``(k,)``. `math.fsum` rounds once, so every machine gets the same sum."""
        exact = self.probs.astype(np.float64)
        return exact / math.fsum(exact.tolist())

    def probability(self, token: int) -> float:
        """``q(token)``; 0 for a token that is not listed."""
        listed = self.ids.tolist()
        return float(self.distribution()[listed.index(token)]) if token in listed else 0.0


def make_proposal(probs: Tensor, k: int = PROPOSAL_SIZE) -> Proposal:
    """The ``k`` most probable ids of a processed distribution ``(V,)``, without those of probability zero.

    Raises InvalidProposal if nothing positive and finite is left.
    """
    best = probs.topk(min(k, probs.shape[-1]))
    values = best.values.double().cpu().numpy()
    ids = best.indices.cpu().numpy()
    total = math.fsum(values.tolist())
    if not 0 < total < math.inf:
        raise InvalidProposal(f"the draft's probabilities sum to {total}: its logits may hold NaN or inf")
    rounded = (values / total).astype(np.float32)
    used = rounded > 0
    return Proposal(ids[used].astype(np.int32), rounded[used])


def draw_from_proposal(proposal: Proposal, u: float) -> int:
    """The id at ``u`` in (0, 1) of the cumulative distribution of a proposal."""
    cumulative = list(accumulate(proposal.distribution().tolist()))
    index = bisect_right(cumulative, u * cumulative[-1])
    return int(proposal.ids[min(index, len(cumulative) - 1)])


def propose(probs: Tensor, u: float, k: int = PROPOSAL_SIZE) -> tuple[int, Proposal]:
    """Draw a token from the k-sparse proposal of ``probs`` ``(V,)``. Returns the token and the proposal."""
    proposal = make_proposal(probs, k)
    return draw_from_proposal(proposal, u), proposal


def check_proposal(proposal: Proposal | None, token: int, vocab_limit: int) -> Proposal:
    """Return the proposal if it is well formed and lists ``token``, else raise `InvalidProposal`."""
    if proposal is None:
        raise InvalidProposal(f"token {token} came without a proposal, which speculative coupling needs")
    if proposal.ids.ndim != 1 or proposal.ids.shape != proposal.probs.shape or proposal.ids.size == 0:
        shapes = f"ids {proposal.ids.shape} and probabilities {proposal.probs.shape}"
        raise InvalidProposal(f"{shapes} must have the same length, and must not be empty")
    ids: list[int] = proposal.ids.tolist()
    probs: list[float] = proposal.probs.tolist()
    if not all(0 < prob < math.inf for prob in probs):
        raise InvalidProposal("a probability is not finite or not positive")
    total = math.fsum(probs)
    if abs(total - 1) > _SUM_TOLERANCE:
        raise InvalidProposal(f"the probabilities sum to {total}, not to 1")
    if min(ids) < 0 or max(ids) >= vocab_limit:
        raise InvalidProposal(f"ids {min(ids)} to {max(ids)} are outside the vocabulary of {vocab_limit}")
    if len(set(ids)) < len(ids):
        raise InvalidProposal("an id is listed twice")
    if token not in ids:
        raise InvalidProposal(f"token {token} is not among the ids of its proposal")
    return proposal


def stack_proposals(proposals: list[Proposal]) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Proposals of a window as int32 and float32 ``(n, K)``; unused places have id -1 and probability 0."""
    width = max((len(proposal.ids) for proposal in proposals), default=0)
    ids = np.full((len(proposals), width), -1, np.int32)
    probs = np.zeros((len(proposals), width), np.float32)
    for row, proposal in enumerate(proposals):
        ids[row, : len(proposal.ids)] = proposal.ids
        probs[row, : len(proposal.probs)] = proposal.probs
    return ids, probs


def unstack_proposals(ids: NDArray[np.int32], probs: NDArray[np.float32]) -> list[Proposal]:
    """The inverse of `stack_proposals`. Raises InvalidProposal if the shapes differ or are not ``(n, K)``."""
    if ids.ndim != 2 or ids.shape != probs.shape:
        raise InvalidProposal(f"ids {ids.shape} and probabilities {probs.shape} must both be (tokens, K)")
    return [
        Proposal(row_ids[row_ids != -1], row_probs[row_ids != -1])
        for row_ids, row_probs in zip(ids, probs, strict=True)
    ]
