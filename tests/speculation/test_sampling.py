"""From logits to distributions and tokens, against transformers' processors."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pvlm.speculation.sampling import best_rows, draw, filtered_scores, greedy, greedy_rows, normalised, processed
from pvlm_protocols.messages import SamplingOptions

SETTINGS = [
    SamplingOptions(temperature=1.0),
    SamplingOptions(temperature=0.3),
    SamplingOptions(temperature=1.7, top_k=1),
    SamplingOptions(temperature=1.0, top_k=5),
    SamplingOptions(temperature=1.0, top_k=1000),
    SamplingOptions(temperature=1.0, top_p=0.9),
    SamplingOptions(temperature=1.0, top_p=1e-6),
    SamplingOptions(temperature=1.0, top_p=1e-9),
    SamplingOptions(temperature=1.0, min_p=0.1),
    SamplingOptions(temperature=1.0, min_p=1.0),
    SamplingOptions(temperature=0.7, top_k=20, top_p=0.8, min_p=0.05),
    SamplingOptions(temperature=1.5, top_k=50, top_p=0.95, min_p=0.02),
]


def by_transformers(logits: torch.Tensor, settings: SamplingOptions) -> torch.Tensor:
    """What ``generate`` does with scores, in its order."""
    from transformers import MinPLogitsWarper, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    scores = logits
    if settings.temperature != 1:
        scores = TemperatureLogitsWarper(settings.temperature)(None, scores)
    if settings.top_k:
        scores = TopKLogitsWarper(settings.top_k)(None, scores)
    if settings.top_p < 1:
        scores = TopPLogitsWarper(settings.top_p)(None, scores)
    if settings.min_p:
        scores = MinPLogitsWarper(settings.min_p)(None, scores)
    return scores


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("ties", [False, True])
def test_the_processed_distribution_is_that_of_transformers(settings: SamplingOptions, ties: bool) -> None:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(12, 193, generator=generator) * 4
    if ties:
        logits = logits.round()
    expected = by_transformers(logits, settings)
    assert torch.equal(filtered_scores(logits, settings, 193), expected)
    assert torch.equal(processed(logits, settings, 193), expected.softmax(dim=-1))


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_padding_does_not_exist(settings: SamplingOptions) -> None:
    """Even where a model gives its padding the largest logits."""
    logits = torch.randn(3, 50, generator=torch.Generator().manual_seed(2))
    padded = torch.cat([logits, torch.full((3, 14), 99.0)], dim=-1)
    assert torch.equal(processed(padded, settings, 50), processed(logits, settings, 50))
    assert greedy(padded[0], 50) == greedy(logits[0], 50) == greedy_rows(padded, 50)[0]


def test_order_matters_and_is_top_k_before_top_p() -> None:
    logits = torch.tensor([[0.4, 0.3, 0.2, 0.1]]).log()
    # Among the two best, 0.4 has 57%: top-p of 0.5 then keeps it alone. The other order would keep both.
    kept = processed(logits, SamplingOptions(temperature=1.0, top_k=2, top_p=0.5), 4)[0] > 0
    assert kept.tolist() == [True, False, False, False]


def test_top_p_that_is_met_exactly_keeps_no_more() -> None:
    logits = torch.tensor([[0.5, 0.25, 0.25]]).log()
    settings = SamplingOptions(temperature=1.0, top_p=0.5)
    assert processed(logits, settings, 3)[0].tolist() == [1.0, 0.0, 0.0]
    assert torch.equal(filtered_scores(logits, settings, 3), by_transformers(logits, settings))


def test_half_precision_is_processed_in_float32() -> None:
    logits = torch.randn(2, 40).to(torch.bfloat16)
    probs = processed(logits, SamplingOptions(temperature=0.7), 40)
    assert probs.dtype == torch.float32
    assert torch.equal(probs, (logits.float() / 0.7).softmax(dim=-1))


def test_greedy_takes_the_lowest_of_equal_ids() -> None:
    row = torch.zeros(1000)
    row[[17, 400, 999]] = 3.0
    assert greedy(row, 1000) == 17
    assert greedy_rows(torch.stack([row, -row, torch.zeros(1000)]), 1000) == [17, 0, 0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_best_ids_of_a_row_come_in_order(dtype: torch.dtype) -> None:
    logits = torch.stack([torch.randperm(60, generator=torch.Generator().manual_seed(seed)) for seed in range(3)])
    logits = logits.to(dtype)
    before = logits.clone()
    assert best_rows(logits, 50, 4) == [tuple(row[:50].topk(4).indices.tolist()) for row in logits]
    assert torch.equal(logits, before)
    assert best_rows(torch.tensor([[1.0, 2.0, 2.0]], dtype=dtype), 3, 9) == [(1, 2, 0)]
    assert best_rows(torch.tensor([[5.0, -torch.inf, 3.0]], dtype=dtype), 3, 3) == [(0, 2)]
    assert best_rows(logits, 50, 1) == [(token,) for token in greedy_rows(logits, 50)]


def test_temperature_zero_has_no_distribution() -> None:
    with pytest.raises(ValueError, match="argmax"):
        processed(torch.zeros(1, 3), SamplingOptions(temperature=0), 3)


@given(
    weights=st.lists(st.sampled_from([0.0, 0.0, 1e-30, 1e-7, 0.1, 0.5, 3.0]), min_size=1, max_size=40),
    u=st.one_of(
        st.floats(0, 1, exclude_min=True, exclude_max=True),
        st.sampled_from([5e-324, 2.0**-53, 1 - 2.0**-53]),
    ),
)
def test_draw_never_returns_a_weight_of_zero(weights: list[float], u: float) -> None:
    row = np.array(weights)
    if not row.any():
        with pytest.raises(ValueError, match="sum to 0"):
            draw(row, u)
    else:
        assert row[draw(row, u)] > 0


def test_draw_is_the_inverse_of_the_cumulative_distribution() -> None:
    row = np.array([0.0, 0.25, 0.0, 0.5, 0.25, 0.0])
    expected = {1e-12: 1, 0.2499: 1, 0.25: 3, 0.7499: 3, 0.75: 4, 1 - 2**-53: 4}
    assert {u: draw(row, u) for u in expected} == expected


def test_draw_where_rounding_reaches_the_total() -> None:
    assert draw(np.array([0.0, 5e-324, 0.0]), 0.9) == 1


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_draw_refuses_what_is_not_finite(bad: float) -> None:
    with pytest.raises(ValueError, match="cannot draw"):
        draw(np.array([0.5, bad]), 0.5)
    with pytest.raises(ValueError, match="may hold NaN"):
        normalised(torch.tensor([0.5, bad]))
