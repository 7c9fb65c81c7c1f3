"""k-sparse proposals: what the draft draws from is what the target reads."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pvlm.speculation.proposals import (
    InvalidProposal,
    Proposal,
    check_proposal,
    draw_from_proposal,
    make_proposal,
    propose,
    stack_proposals,
    unstack_proposals,
)

rows = st.lists(st.one_of(st.just(0.0), st.floats(2.0**-40, 1.0, width=32)), min_size=1, max_size=120).filter(
    lambda weights: sum(weights) > 1e-6
)


def row_of(weights: list[float]) -> torch.Tensor:
    row = torch.tensor(weights, dtype=torch.float32)
    return row / row.sum()


@given(weights=rows, k=st.integers(1, 70), u=st.floats(0, 1, exclude_min=True, exclude_max=True))
def test_a_proposal_survives_the_wire(weights: list[float], k: int, u: float) -> None:
    row = row_of(weights)
    token, proposal = propose(row, u, k)
    assert check_proposal(proposal, token, len(row)) is proposal
    assert proposal.ids.dtype == np.int32
    assert proposal.probs.dtype == np.float32
    assert len(proposal.ids) <= min(k, int((row > 0).sum()))
    assert (np.diff(proposal.probs) <= 0).all()
    assert row[token] > 0
    ids, probs = stack_proposals([proposal, Proposal(np.arange(80, dtype=np.int32), np.full(80, 1 / 80, np.float32))])
    read = unstack_proposals(ids, probs)[0]
    assert (read.ids == proposal.ids).all()
    assert (read.distribution() == proposal.distribution()).all()  # Bit for bit.
    assert math.fsum(read.distribution()) == pytest.approx(1, abs=1e-14)
    assert draw_from_proposal(read, u) == token


def test_the_most_probable_stay_in_proportion() -> None:
    row = torch.tensor([0.1, 0.4, 0.0, 0.2, 0.3])
    proposal = make_proposal(row, 3)
    assert proposal.ids.tolist() == [1, 4, 3]
    assert proposal.distribution() == pytest.approx([4 / 9, 3 / 9, 2 / 9], rel=1e-7)


def test_draws_follow_the_proposal() -> None:
    """The inverse of the cumulative distribution, exactly at its steps."""
    proposal = Proposal(np.array([7, 3, 9], np.int32), np.array([0.5, 0.25, 0.25], np.float32))
    expected = {1e-9: 7, 0.4999: 7, 0.5: 3, 0.7499: 3, 0.75: 9, 1 - 2**-53: 9}
    assert {u: draw_from_proposal(proposal, u) for u in expected} == expected


GOOD = Proposal(np.array([4, 2], np.int32), np.array([0.75, 0.25], np.float32))


@pytest.mark.parametrize(
    ("changes", "token", "message"),
    [
        ({"probs": np.array([math.nan, 0.25], np.float32)}, 4, "not finite"),
        ({"probs": np.array([math.inf, 0.25], np.float32)}, 4, "not finite"),
        ({"probs": np.array([1.25, -0.25], np.float32)}, 4, "not positive"),
        ({"probs": np.array([1.0, 0.0], np.float32)}, 4, "not positive"),
        ({"probs": np.array([0.75, 0.26], np.float32)}, 4, "sum to"),
        ({"ids": np.array([4, 4], np.int32)}, 4, "twice"),
        ({"ids": np.array([4, 10], np.int32)}, 4, "vocabulary of 10"),
        ({"ids": np.array([4, -2], np.int32)}, 4, "vocabulary of 10"),
        ({"ids": np.array([4], np.int32)}, 4, "must have the same length"),
        ({"ids": np.array([], np.int32), "probs": np.array([], np.float32)}, 4, "must not be empty"),
        ({}, 3, "not among"),
    ],
)
def test_an_invalid_proposal(changes: dict[str, Any], token: int, message: str) -> None:
    assert check_proposal(GOOD, 4, 10) is GOOD
    with pytest.raises(InvalidProposal, match=message):
        check_proposal(GOOD._replace(**changes), token, 10)


def test_a_missing_proposal() -> None:
    with pytest.raises(InvalidProposal, match="without a proposal"):
        check_proposal(None, 1, 10)


def test_a_draft_with_nan_logits_has_no_proposal() -> None:
    with pytest.raises(InvalidProposal, match="nan"):
        make_proposal(torch.tensor([0.5, math.nan]))


def test_arrays_of_different_shape_cannot_be_unstacked() -> None:
    with pytest.raises(InvalidProposal, match="tokens, K"):
        unstack_proposals(np.zeros((2, 3), np.int32), np.zeros((2, 4), np.float32))
