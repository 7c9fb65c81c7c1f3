"""Losslessness of accept-or-replace and of the Gumbel choice: exactly, and by simulation.

The exact test reads the scheme's output distribution off the functions themselves: they are monotone in u, so the
share of u that gives an outcome is found by bisection. The same test must reject acceptance rules that are wrong.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from pvlm.speculation.proposals import Proposal, draw_from_proposal, make_proposal
from pvlm.speculation.randomness import uniform
from pvlm.speculation.sampling import draw, normalised
from pvlm.speculation.text import agreement
from pvlm.speculation.verification import (
    gumbel_choices,
    residual_draw,
    speculative_accept,
)

SIGNIFICANCE = 1e-4

Floats = NDArray[np.float64]
Accept = Callable[[float, float, float], bool]
Replace = Callable[[Floats, Proposal, float], int]


def bisect(true_below: Callable[[float], bool]) -> float:
    """The u in [0, 1] where a monotone predicate turns from true to false."""
    low, high = 0.0, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if true_below(middle) else (low, middle)
    return low


def drawn_distribution(at: Callable[[float], int], size: int) -> np.ndarray:
    """Probability of each id under ``at(u)``, whose ids ascend with u."""
    steps = [bisect(lambda u, token=token: at(u) <= token) for token in range(size)]  # type: ignore[misc]
    return np.diff(np.array([0.0, *steps]))


def output_distribution(
    p: Floats,
    proposal: Proposal,
    accept: Accept = speculative_accept,
    replace: Replace = residual_draw,
) -> np.ndarray:
    """``sum over x of q(x) [a(x) 1{x} + (1 - a(x)) r]`` with a and r measured."""
    output = np.zeros(len(p))
    replacement = drawn_distribution(lambda u: replace(p, proposal, u), len(p))
    for token, q in zip(proposal.ids.tolist(), proposal.distribution().tolist(), strict=True):
        kept = bisect(lambda u, token=token, q=q: accept(p[token], q, u))  # type: ignore[misc]
        output[token] += q * kept
        output += q * (1 - kept) * replacement
    return output


def random_pair(seed: int, size: int, k: int) -> tuple[Floats, Proposal]:
    """p with zeros in it, and a proposal that lists k ids."""
    generator = np.random.default_rng(seed)
    p, q = generator.dirichlet(np.full(size, 0.7), 2)
    p[generator.random(size) < 0.2] = 0
    p = p if p.any() else np.ones(size)
    return normalised(torch.tensor(p)), make_proposal(torch.tensor(q, dtype=torch.float32), k)


@pytest.mark.parametrize("seed", range(12))
def test_the_output_distribution_is_exactly_p(seed: int) -> None:
    p, proposal = random_pair(seed, size=3 + seed % 6, k=1 + seed % 5)
    assert output_distribution(p, proposal) == pytest.approx(p, abs=1e-12)


def accept_by_p(p: float, q: float, u: float) -> bool:
    return u < p


def accept_what_is_likelier(p: float, q: float, u: float) -> bool:
    """The greedy-looking shortcut: accept where p >= q, else reject."""
    return p >= q


def accept_by_dense_q(p: float, q: float, u: float) -> bool:
    """As if q came from the dense distribution, of which only the top is listed."""
    return u * q * 0.9 < p


def replace_from_p(p: Floats, proposal: Proposal, u: float) -> int:
    return draw(p, u)


@pytest.mark.parametrize("accept", [accept_by_p, accept_what_is_likelier, accept_by_dense_q])
def test_a_wrong_acceptance_rule_is_noticed(accept: Accept) -> None:
    p, proposal = random_pair(3, size=6, k=4)
    assert output_distribution(p, proposal, accept=accept) != pytest.approx(p, abs=1e-3)


def test_a_wrong_replacement_is_noticed() -> None:
    p, proposal = random_pair(3, size=6, k=4)
    assert output_distribution(p, proposal, replace=replace_from_p) != pytest.approx(p, abs=1e-3)


def simulated_pvalue(accept: Accept, target_role: str = "target", draws: int = 12_000) -> float:
    """Chi-square of simulated tokens against p, with the random streams that the actors use."""
    p, proposal = random_pair(5, size=7, k=4)
    counts = np.zeros(len(p))
    for position in range(draws):
        token = draw_from_proposal(proposal, uniform(1, "draft", "propose", 0, 0, position))
        purpose = "accept" if target_role == "target" else "propose"
        u = uniform(1, target_role, purpose, 0, 0, position)  # type: ignore[arg-type]
        if not accept(p[token], proposal.probability(token), u):
            token = residual_draw(p, proposal, uniform(1, "target", "residual", 0, 0, position))
        counts[token] += 1
    possible = p > 0
    assert not counts[~possible].any()
    return float(stats.chisquare(counts[possible], p[possible] * draws).pvalue)


def test_simulated_tokens_follow_p() -> None:
    assert simulated_pvalue(speculative_accept) > SIGNIFICANCE


def test_the_simulation_notices_a_wrong_rule() -> None:
    assert simulated_pvalue(accept_by_p) < 1e-12


def test_the_simulation_notices_correlated_streams() -> None:
    """The target deciding by the number that the draft drew with: why streams are keyed by role and purpose."""
    assert simulated_pvalue(speculative_accept, target_role="draft") < 1e-12


weights = st.lists(st.sampled_from([0.0, 1e-9, 0.01, 0.2, 0.5, 1.0]), min_size=2, max_size=8).filter(any)
unit = st.floats(0, 1, exclude_min=True, exclude_max=True)


@given(p_weights=weights, q_weights=weights, k=st.integers(1, 8), u=st.tuples(unit, unit, unit))
def test_no_token_of_probability_zero_comes_out(
    p_weights: list[float], q_weights: list[float], k: int, u: tuple[float, float, float]
) -> None:
    size = max(len(p_weights), len(q_weights))
    p = normalised(torch.tensor(p_weights + [0.0] * (size - len(p_weights))))
    proposal = make_proposal(torch.tensor(q_weights + [0.0] * (size - len(q_weights))), k)
    token = draw_from_proposal(proposal, u[0])
    if not speculative_accept(p[token], proposal.probability(token), u[1]):
        corrected = residual_draw(p, proposal, u[2])
        assert corrected != token
        token = corrected
    assert p[token] > 0


@given(q_weights=weights, u=unit)
def test_equal_distributions_always_agree(q_weights: list[float], u: float) -> None:
    proposal = make_proposal(torch.tensor(q_weights), len(q_weights))
    p = np.zeros(len(q_weights))
    p[proposal.ids] = proposal.distribution()
    for token in proposal.ids.tolist():
        assert speculative_accept(p[token], proposal.probability(token), u)
    # A rejection has probability zero here; were there one, there is no residual, and p serves.
    assert p[residual_draw(p, proposal, u)] > 0


@given(choices=st.lists(st.integers(0, 2), max_size=8), drafted=st.lists(st.integers(0, 2), max_size=8))
def test_agreement_is_the_common_prefix(choices: list[int], drafted: list[int]) -> None:
    count = agreement(choices, drafted)
    assert choices[:count] == drafted[:count]
    assert count == min(len(choices), len(drafted)) or choices[count] != drafted[count]


# ---- Gumbel -------------------------------------------------------------------------------------------------------


def test_the_gumbel_choice_is_distributed_as_p() -> None:
    p = torch.tensor([0.5, 0.0, 0.2, 0.2, 0.07, 0.03])
    draws = 20_000
    choices = gumbel_choices(p.log().expand(draws, -1), 11, range(draws))
    counts = np.bincount(choices, minlength=6)
    assert counts[1] == 0
    possible = p.numpy() > 0
    assert stats.chisquare(counts[possible], p.numpy()[possible].astype(np.float64) * draws).pvalue > SIGNIFICANCE
    # Neighbouring positions are drawn independently: the pairs fill the product.
    pairs = np.histogram2d(choices[:-1], choices[1:], bins=6, range=[[0, 6], [0, 6]])[0][possible][:, possible]
    assert stats.chi2_contingency(pairs).pvalue > SIGNIFICANCE


@settings(max_examples=50)
@given(seed=st.integers(0, 2**63), position=st.integers(0, 5000), k=st.integers(1, 40))
def test_a_restricted_choice_is_the_full_choice_where_it_is_listed(seed: int, position: int, k: int) -> None:
    scores = torch.randn(1, 200, generator=torch.Generator().manual_seed(position))
    full = gumbel_choices(scores, seed, [position])[0]
    best = scores[0].topk(k)
    restricted = gumbel_choices(best.values.unsqueeze(0), seed, [position], best.indices)[0]
    assert restricted in best.indices.tolist()
    if full in best.indices.tolist():
        assert restricted == full


@given(shift=st.sampled_from([-3.0, 0.0, 5.0]), padding=st.integers(0, 50))
def test_neither_a_constant_nor_padding_moves_the_choice(shift: float, padding: int) -> None:
    scores = torch.randn(9, 50, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    wider = torch.cat([scores + shift, torch.full((9, padding), -torch.inf, dtype=torch.float64)], dim=1)
    assert gumbel_choices(wider, 4, range(9)) == gumbel_choices(scores, 4, range(9))


@given(p_weights=weights, q_weights=weights)
def test_speculative_accepts_the_overlap(p_weights: list[float], q_weights: list[float]) -> None:
    """The acceptance rate is ``sum min(p, q)`` (Leviathan et al., Theorem 3.5)."""
    size = max(len(p_weights), len(q_weights))
    p = normalised(torch.tensor(p_weights + [0.0] * (size - len(p_weights))))
    proposal = make_proposal(torch.tensor(q_weights + [0.0] * (size - len(q_weights))), size)
    assume(len(proposal.ids) > 0)
    kept, overlap = 0.0, 0.0
    for token, q in zip(proposal.ids.tolist(), proposal.distribution().tolist(), strict=True):
        kept += q * bisect(lambda u, token=token, q=q: speculative_accept(p[token], q, u))  # type: ignore[misc]
        overlap += min(q, float(p[token]))
    assert kept == pytest.approx(overlap, abs=1e-9)
