"""The three couplings: the answer does not depend on how a session is cut into windows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from scipy import stats

from pvlm.speculation.coupling import (
    Coupling,
    GreedyCoupling,
    GumbelCoupling,
    SpeculativeCoupling,
    coupling_for,
)
from pvlm.speculation.proposals import InvalidProposal, Proposal
from pvlm.speculation.randomness import uniform
from pvlm.speculation.sampling import draw, normalised, processed
from pvlm_protocols.messages import Sampling, SamplingOptions

VOCABULARY = 40
WIDTH = 48  # Eight ids of padding, to which the models give the largest logits.
SETTINGS = SamplingOptions(temperature=0.9, top_k=20, top_p=0.95, min_p=0.01)

COUPLINGS: list[Coupling] = [
    GreedyCoupling(VOCABULARY),
    GumbelCoupling(SETTINGS, VOCABULARY, seed=5),
    SpeculativeCoupling(SETTINGS, VOCABULARY, seed=5, session=1),
]
by_name = pytest.mark.parametrize("coupling", COUPLINGS, ids=lambda c: type(c).__name__)


class ToyModel:
    """Logits that depend on the last two tokens; the draft's are the target's with some noise."""

    def __init__(self, noise: float, vocabulary: int = VOCABULARY, width: int = WIDTH) -> None:
        generator = torch.Generator().manual_seed(0)
        self.table = torch.randn(vocabulary + 1, vocabulary + 1, width, generator=generator) * 2
        self.table += torch.randn(self.table.shape, generator=generator) * noise
        self.table[:, :, vocabulary:] = 50.0

    def row(self, tokens: Sequence[int]) -> torch.Tensor:
        before, last = [-1, -1, *tokens][-2:]
        return self.table[before, last]

    def rows(self, tokens: Sequence[int], start: int) -> torch.Tensor:
        return torch.stack([self.row(tokens[:end]) for end in range(start, len(tokens) + 1)])


def decode(coupling: Coupling, length: int, gammas: Sequence[int], target: ToyModel, draft: ToyModel) -> list[int]:
    """A loop in miniature: windows of the given sizes in turn, the bonus row drawn alone (gamma 0: a step alone)."""
    tokens: list[int] = []
    epoch = 0
    for turn in range(10_000):
        if len(tokens) >= length:
            break
        start = len(tokens)
        window, proposals = list(tokens), []
        for position in range(start, start + gammas[turn % len(gammas)]):
            ((token, proposal, _),) = coupling.draft(draft.row(window)[None], positions=[position], epoch=epoch)
            window.append(token)
            proposals.append(proposal)
        drafted = window[start:]
        rows = target.rows(window, start)
        accepted, correction = coupling.judge_window(rows, drafted, proposals, start=start, epoch=epoch)
        tokens = window[: start + accepted]
        if correction is None:
            correction = coupling.choose(rows[-1], position=len(tokens), epoch=epoch)
        else:
            epoch += 1
        tokens.append(correction)
    return tokens[:length]


@by_name
@pytest.mark.parametrize("noise", [0.0, 1.0, 30.0])
def test_judging_a_window_is_judging_its_tokens(coupling: Coupling, noise: float) -> None:
    target, draft = ToyModel(0.0), ToyModel(noise)
    for trial in range(20):
        tokens, proposals = [trial], []
        for position in range(1, 7):
            ((token, proposal, _),) = coupling.draft(draft.row(tokens)[None], positions=[position], epoch=trial)
            tokens.append(token)
            proposals.append(proposal)
        rows = target.rows(tokens, 1)
        window = coupling.judge_window(rows, tokens[1:], proposals, start=1, epoch=trial)
        count, correction = 0, None
        for index, (token, proposal) in enumerate(zip(tokens[1:], proposals, strict=True)):
            accepted, decided = coupling.judge(rows[index], token, proposal, position=1 + index, epoch=trial)
            if not accepted:
                correction = decided
                break
            assert decided == token
            count += 1
        assert window == (count, correction)
        if noise == 0.0:
            assert count >= 5  # A greedy or Gumbel draft equal to the target is always right; the top 64 is everything.


@by_name
def test_no_padding_and_nothing_filtered_comes_out(coupling: Coupling) -> None:
    target, draft = ToyModel(0.0), ToyModel(2.0)
    tokens = decode(coupling, 200, [3, 0, 5], target, draft)
    assert max(tokens) < VOCABULARY
    if not isinstance(coupling, GreedyCoupling):
        for end in range(len(tokens)):
            assert processed(target.row(tokens[:end])[None], SETTINGS, VOCABULARY)[0, tokens[end]] > 0


@pytest.mark.parametrize("coupling", COUPLINGS[:2], ids=lambda c: type(c).__name__)
def test_greedy_and_gumbel_text_does_not_depend_on_the_windows(coupling: Coupling) -> None:
    target = ToyModel(0.0)
    alone = decode(coupling, 120, [0], target, target)
    for gammas, noise in [([1], 0.0), ([4], 1.0), ([7, 2, 0], 0.5), ([3], 30.0)]:
        assert decode(coupling, 120, gammas, target, ToyModel(noise)) == alone


def test_gumbel_text_depends_on_the_seed_only() -> None:
    target = ToyModel(0.0)
    texts = {
        seed: tuple(decode(GumbelCoupling(SETTINGS, VOCABULARY, seed), 60, [0], target, target)) for seed in range(5)
    }
    assert len(set(texts.values())) == 5
    first = GumbelCoupling(SETTINGS, VOCABULARY, 3)
    row = target.row([1, 2])
    assert first.choose(row, position=9, epoch=0) == first.choose(row, position=9, epoch=8)


def test_greedy_ties_go_to_the_lowest_id_on_both_sides() -> None:
    coupling = GreedyCoupling(VOCABULARY)
    row = torch.zeros(WIDTH)
    row[[9, 30]] = 1.0
    row[45] = 2.0
    assert coupling.draft(row[None], positions=[0], epoch=0) == [(9, None, ())]
    assert coupling.judge(row, 30, None, position=0, epoch=0) == (False, 9)
    assert coupling.judge(row, 9, None, position=0, epoch=0) == (True, 9)
    assert coupling.choose(row, position=0, epoch=0) == 9


@by_name
def test_rows_drafted_at_once_are_those_drafted_one_by_one(coupling: Coupling) -> None:
    rows, positions = ToyModel(1.0).rows([1, 2, 3, 4], 0), [4, 9, 4, 5, 6]
    together = coupling.draft(rows, positions=positions, epoch=2, others=3)
    alone = [
        coupling.draft(row[None], positions=[position], epoch=2, others=3)[0]
        for row, position in zip(rows, positions, strict=True)
    ]
    assert [(one.token, one.others) for one in together] == [(one.token, one.others) for one in alone]
    assert all(len({one.token, *one.others}) == 4 for one in together)


@by_name
def test_an_empty_window_tests_nothing(coupling: Coupling) -> None:
    assert coupling.judge_window(torch.zeros(1, WIDTH), [], [], start=0, epoch=0) == (0, None)


@pytest.mark.parametrize(("gammas", "noise"), [([2], 1.5), ([3, 0, 1], 1.5), ([0], 0.0)])
@pytest.mark.parametrize("name", ["gumbel", "speculative"])
def test_the_joint_distribution_of_three_tokens_is_the_targets(name: str, gammas: list[int], noise: float) -> None:
    """Chi-square over all three-token answers, each session (or seed) a fresh draw; significance 1e-4."""
    size, sessions = 3, 1500
    settings = SamplingOptions(temperature=2.0)
    target, draft = ToyModel(0.0, size, size + 1), ToyModel(noise, size, size + 1)
    counts = np.zeros((size,) * 3)
    for session in range(sessions):
        coupling: Coupling = (
            GumbelCoupling(settings, size, seed=session)
            if name == "gumbel"
            else SpeculativeCoupling(settings, size, seed=5, session=session)
        )
        counts[tuple(decode(coupling, 3, gammas, target, draft))] += 1
    expected = np.zeros_like(counts)
    for answer in np.ndindex(*counts.shape):
        probability = 1.0
        for end in range(3):
            row = processed(target.row(answer[:end])[None], settings, size)[0].double()
            probability *= float(row[answer[end]] / row.sum())
        expected[answer] = probability * sessions
    rare = expected < 5
    observed = np.append(counts[~rare], counts[rare].sum())
    wanted = np.append(expected[~rare], expected[rare].sum())
    assert stats.chisquare(observed[wanted > 0], wanted[wanted > 0]).pvalue > 1e-4


def test_speculative_draws_are_keyed_by_session_epoch_and_position() -> None:
    row = torch.zeros(VOCABULARY)
    settings = SamplingOptions(temperature=1.0)
    drafts = {
        (session, epoch, position): SpeculativeCoupling(settings, VOCABULARY, 1, session)
        .draft(row[None], positions=[position], epoch=epoch)[0]
        .token
        for session in range(3)
        for epoch in range(3)
        for position in range(3)
    }
    assert len(set(drafts.values())) > 10


def test_a_token_drawn_alone_has_its_own_stream() -> None:
    coupling = SpeculativeCoupling(SamplingOptions(temperature=1.0), VOCABULARY, 4, 2)
    p = normalised(torch.full((VOCABULARY,), 1 / VOCABULARY))
    alone = [coupling.choose(torch.zeros(VOCABULARY), position=at, epoch=1) for at in range(20)]
    assert alone == [draw(p, uniform(4, "target", "choose", 2, 1, at)) for at in range(20)]


def test_speculative_refuses_what_cannot_have_been_drawn() -> None:
    coupling = SpeculativeCoupling(SETTINGS, VOCABULARY, 1, 1)
    row = torch.zeros(VOCABULARY)
    with pytest.raises(InvalidProposal, match="without a proposal"):
        coupling.judge(row, 3, None, position=0, epoch=0)
    padding = Proposal(np.array([VOCABULARY], np.int32), np.array([1.0], np.float32))
    with pytest.raises(InvalidProposal, match="vocabulary"):
        coupling.judge_window(row[None], [VOCABULARY], [padding], start=0, epoch=0)


def test_coupling_for_the_wire() -> None:
    sampling = Sampling(vocab_limit=10, temperature=0.5, top_k=3, seed=7, coupling="speculative")
    expected = SpeculativeCoupling(sampling, 10, 7, 2)
    assert coupling_for(sampling, session=2) == expected
    assert coupling_for(Sampling(vocab_limit=10), session=2) == GreedyCoupling(10)
    gumbel = Sampling(vocab_limit=10, temperature=1.0, seed=7, coupling="gumbel")
    assert coupling_for(gumbel, session=2) == GumbelCoupling(gumbel, 10, 7)
    with pytest.raises(ValueError, match="resolve it"):
        coupling_for(Sampling(vocab_limit=10, coupling="auto"), session=2)
