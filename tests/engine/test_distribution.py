"""Sampled answers are distributed as the target's own, whatever the draft says, and seeded ones are the target's own.

The whole loop runs here (both actors and the coordinator, in random order) on toy models whose exact distribution is
known. The seeds are fixed, so a test that passes, passes always.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from pvlm.speculation import coupling
from pvlm.speculation.policy import FixedWindow
from pvlm.speculation.proposals import Proposal
from pvlm.speculation.sampling import draw, processed
from pvlm_protocols.messages import Pruning, Sampling
from tests.coordination.harness import SCHEDULES, Harness, sampling
from tests.support.toy import VOCABULARY, ToyBackend

SAMPLES = 800
TOKENS = 3
SIGNIFICANCE = 1e-3
"""With this probability a correct sampler fails at one choice of seeds. They are fixed: it fails never, or always."""

# Three tokens a position: 27 answers, all of them often enough. Draft and target do not have the same three.
SETTINGS: Sampling = sampling(
    max_tokens=TOKENS, temperature=1.0, top_k=3, coupling="speculative", end_token_ids=(), seed=11
)
TARGET = ToyBackend(seed=4)
DRAFT = ToyBackend(seed=4, noise=1.0)


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def exact(backend: ToyBackend, prefix: tuple[int, ...] = (), mass: float = 1.0) -> dict[tuple[int, ...], float]:
    """The probability of each answer of `TOKENS` tokens."""
    if len(prefix) == TOKENS:
        return {prefix: mass}
    row = backend.row(prefix)[None]
    probs = processed(row, SETTINGS, VOCABULARY)[0].double()
    found: dict[tuple[int, ...], float] = {}
    for token in probs.nonzero().flatten().tolist():
        found |= exact(backend, (*prefix, token), mass * float(probs[token]))
    return found


def answers(schedule: str, gamma: int, samples: int = SAMPLES) -> Counter[tuple[int, ...]]:
    """Answers of as many sessions, each with an order of events of its own; every other one has a seed of its own."""
    found: Counter[tuple[int, ...]] = Counter()
    for number in range(samples):
        order = random.Random(number)
        harness = Harness(
            schedule=schedule,
            target=TARGET,
            draft=DRAFT,
            session=number,
            sampling=SETTINGS if number % 2 else sampling_with_seed(number),
            pruning=Pruning(method="none"),
            policy=FixedWindow(gamma, wait=number % (gamma + 1), patience_ms=1e9 if number % 3 else 0.0),
        )
        found[tuple(harness.play(order.choice))] += 1
    return found


def sampling_with_seed(seed: int) -> Sampling:
    return sampling(
        max_tokens=TOKENS, temperature=1.0, top_k=3, coupling="speculative", end_token_ids=(), seed=100 + seed
    )


def p_value(found: Counter[tuple[int, ...]], expected: dict[tuple[int, ...], float]) -> float:
    """Of a chi-square test of counts against probabilities; rare answers share one bin."""
    assert set(found) <= set(expected), "an answer that the target cannot give"
    total = found.total()
    common = [answer for answer, mass in expected.items() if mass * total >= 5]
    counts = [found[answer] for answer in common]
    masses = [expected[answer] * total for answer in common]
    rare = total - sum(masses)
    if rare >= 5:
        counts.append(total - sum(counts))
        masses.append(rare)
    else:  # into the last bin
        counts[-1] += total - sum(counts)
        masses[-1] += rare
    return float(stats.chisquare(counts, masses).pvalue)


CASES = [("sd", 2), ("parallel", 1), ("parallel", 2), ("no-decode", 2)]
by_case = pytest.mark.parametrize(("schedule", "gamma"), CASES, ids=lambda value: str(value))


@by_case
def test_sampled_answers_have_the_targets_exact_distribution(schedule: str, gamma: int) -> None:
    assert p_value(answers(schedule, gamma), exact(TARGET)) > SIGNIFICANCE


def test_the_test_would_see_the_drafts_distribution() -> None:
    """The two models differ enough for the test above to mean something."""
    target, draft = exact(TARGET), exact(DRAFT)
    distance = sum(abs(target.get(a, 0) - draft.get(a, 0)) for a in {*target, *draft}) / 2
    assert 0.1 < distance < 0.9


def always_accept(p: float, q: float, u: float) -> bool:
    return p > 0  # what the target cannot say at all would be too easy to find


def accept_what_is_likelier(p: float, q: float, u: float) -> bool:
    return p >= q


def replace_from_p(p: NDArray[np.float64], proposal: Proposal, u: float) -> int:
    return draw(p, u)


BROKEN = {
    always_accept: "speculative_accept",
    accept_what_is_likelier: "speculative_accept",
    replace_from_p: "residual_draw",
}


@pytest.mark.parametrize("rule", BROKEN)
@pytest.mark.parametrize("schedule", ["sd", "parallel"])
def test_a_broken_rule_fails_that_test(
    monkeypatch: pytest.MonkeyPatch, schedule: str, rule: Callable[..., object]
) -> None:
    monkeypatch.setattr(coupling, BROKEN[rule], rule)
    assert p_value(answers(schedule, 2, SAMPLES // 2), exact(TARGET)) < SIGNIFICANCE


def test_noise_that_draft_and_target_share_by_accident_fails_that_test(monkeypatch: pytest.MonkeyPatch) -> None:
    """Were all random streams one, accepting would depend on what was drafted."""
    shared = coupling.uniform
    monkeypatch.setattr(
        coupling,
        "uniform",
        lambda seed, role, purpose, session, epoch, position: shared(seed, "draft", "propose", session, 0, position),
    )
    assert p_value(answers("parallel", 2, SAMPLES // 2), exact(TARGET)) < SIGNIFICANCE


@pytest.mark.parametrize("schedule", [name for name in SCHEDULES if name != "ar"])
@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**63 - 1),
    order=st.integers(0, 10_000),
    gamma=st.integers(1, 8),
    wait=st.integers(0, 8),
    ratio=st.sampled_from([0.0, 0.25, 0.5, 0.9]),
    pruner=st.sampled_from(["uv", "attention", "specvlm", "novelty", "uniform", "random", "none"]),
    noise=st.sampled_from([0.0, 0.5, 3.0]),
    filters=st.sampled_from([(0, 1.0, 0.0), (4, 1.0, 0.0), (0, 0.8, 0.0), (0, 1.0, 0.1)]),
    temperature=st.sampled_from([0.3, 1.0, 1.7]),
)
def test_a_seeded_answer_is_the_targets_own_whatever_the_draft_does(
    schedule: str,
    seed: int,
    order: int,
    gamma: int,
    wait: int,
    ratio: float,
    pruner: str,
    noise: float,
    filters: Sequence[float],
    temperature: float,
) -> None:
    """Gumbel coupling: the text is a function of prompt, options and seed."""
    top_k, top_p, min_p = filters
    how = sampling(
        temperature=temperature, top_k=int(top_k), top_p=top_p, min_p=min_p, coupling="gumbel", seed=seed, max_tokens=20
    )
    alone = Harness(schedule="ar", target=TARGET, sampling=how).play()
    together = Harness(
        schedule=schedule,
        target=TARGET,
        draft=ToyBackend(seed=4, noise=noise),
        sampling=how,
        session=2 + order,
        policy=FixedWindow(gamma, min(wait, gamma), 1e9 if order % 2 else 0.0),
        pruning=Pruning(method=pruner, ratio=0.0 if pruner == "none" else ratio),
    )
    assert together.play(random.Random(order).choice) == alone


def test_seeded_answers_differ_between_seeds() -> None:
    """And among many seeds they have the target's distribution too."""
    found: Counter[tuple[int, ...]] = Counter()
    for seed in range(SAMPLES):
        how = sampling(max_tokens=TOKENS, temperature=1.0, top_k=3, coupling="gumbel", end_token_ids=(), seed=seed)
        found[tuple(Harness(schedule="parallel", target=TARGET, draft=DRAFT, sampling=how).play())] += 1
    assert p_value(found, exact(TARGET)) > SIGNIFICANCE
