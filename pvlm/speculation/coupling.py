"""Couplings: how a drafted token depends on the target's own draw.

All three leave the target's distribution unchanged. They decide a token differently: `GreedyCoupling` by the largest
logit, `GumbelCoupling` by noise that both sides share, `SpeculativeCoupling` by an accept-or-replace draw.
`SpeculativeCoupling` accepts the most tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from pvlm.speculation.proposals import PROPOSAL_SIZE, Proposal, check_proposal, propose
from pvlm.speculation.randomness import Purpose, uniform
from pvlm.speculation.sampling import (
    best_rows,
    draw,
    filtered_scores,
    greedy,
    greedy_rows,
    normalised,
    processed,
)
from pvlm.speculation.text import agreement
from pvlm.speculation.verification import gumbel_choices, gumbel_ranks, residual_draw, speculative_accept
from pvlm_protocols.messages import Sampling, SamplingOptions


class Drafted(NamedTuple):
    """A drafted token, and its proposal (None: the coupling needs none).

    ``others``: the likeliest other tokens, best first, one of which the target may write where it rejects ``token``.
    They are never accepted by themselves.
    """

    token: int
    proposal: Proposal | None
    others: tuple[int, ...] = ()


class Judgement(NamedTuple):
    """``token``: the drafted token if ``accepted``, else the target's own token."""

    accepted: bool
    token: int


class WindowJudgement(NamedTuple):
    """``accepted``: number of accepted tokens; ``correction``: the token after them, None if all were accepted."""

    accepted: int
    correction: int | None


class Coupling(Protocol):
    """One answer's rule for drawing and verifying.

    Logits are float ``(V,)`` or ``(n, V)`` on any device. ``position`` is the answer index of the decided token, and
    ``epoch`` the drafting epoch; together they key the random draws. **Each position is drawn once**: do not call these
    methods again for a committed token, and decide whether to verify before you look at p(x).
    """

    def draft(self, logits: Tensor, *, positions: Sequence[int], epoch: int, others: int = 0) -> list[Drafted]:
        """Draft side: draw a token from each row of the draft's logits, ``(n, V)``, for the answer indices
        ``positions``. ``others``: how many other tokens to name.
        """
        ...

    def judge(self, logits: Tensor, token: int, proposal: Proposal | None, *, position: int, epoch: int) -> Judgement:
        """Target side: accept or correct one drafted token. Raises InvalidProposal if ``proposal`` excludes it."""
        ...

    def judge_window(
        self, logits: Tensor, tokens: Sequence[int], proposals: Sequence[Proposal | None], *, start: int, epoch: int
    ) -> WindowJudgement:
        """`judge` along a window: row i of ``logits`` decides ``tokens[i]`` at position ``start + i``.

        Further rows, such as the one after the last token, are ignored. Nothing is drawn after a rejection.
        """
        ...

    def choose(self, logits: Tensor, *, position: int, epoch: int) -> int:
        """Target side: draw a token without a drafted one."""
        ...


def coupling_for(sampling: Sampling, *, session: int) -> Coupling:
    """The coupling named in ``sampling``. Raises ValueError for ``auto``: call `resolve_coupling` first."""
    match sampling.coupling:
        case "greedy":
            return GreedyCoupling(sampling.vocab_limit)
        case "gumbel":
            return GumbelCoupling(sampling, sampling.vocab_limit, sampling.seed)
        case "speculative":
            return SpeculativeCoupling(sampling, sampling.vocab_limit, sampling.seed, session)
        case _:
            raise ValueError(f"coupling is {sampling.coupling!r}: resolve it before a session is opened")


@dataclass(frozen=True)
class GreedyCoupling:
    """Accept a token if it has the target's largest logit; of equal ones the lowest id counts."""

    vocab_limit: int

    def draft(self, logits: Tensor, *, positions: Sequence[int], epoch: int, others: int = 0) -> list[Drafted]:
        return [Drafted(best[0], None, best[1:]) for best in best_rows(logits, self.vocab_limit, others + 1)]

    def judge(
        self,
        logits: Tensor,
        token: int,
        proposal: Proposal | None,
        *,
        position: int,
        epoch: int,
    ) -> Judgement:
        choice = greedy(logits, self.vocab_limit)
        return Judgement(choice == token, choice)

    def judge_window(
        self,
        logits: Tensor,
        tokens: Sequence[int],
        proposals: Sequence[Proposal | None],
        *,
        start: int,
        epoch: int,
    ) -> WindowJudgement:
        return _compare(greedy_rows(logits[: len(tokens)], self.vocab_limit), tokens) if tokens else _NOTHING_TESTED

    def choose(self, logits: Tensor, *, position: int, epoch: int) -> int:
        return greedy(logits, self.vocab_limit)


@dataclass(frozen=True)
class GumbelCoupling:
    """Both sides add the same noise and take the argmax; a token is accepted if both choose it.

    The noise depends on (seed, position, id) alone, so the answer does not depend on windows, timing, epochs or
    sessions.
    """

    settings: SamplingOptions
    vocab_limit: int
    seed: int

    def draft(self, logits: Tensor, *, positions: Sequence[int], epoch: int, others: int = 0) -> list[Drafted]:
        scores = filtered_scores(logits, self.settings, self.vocab_limit)
        best = scores.topk(min(PROPOSAL_SIZE, scores.shape[-1]))
        ranked = [
            gumbel_ranks(values, self.seed, position, ids, others + 1)
            for values, ids, position in zip(best.values, best.indices, positions, strict=True)
        ]
        return [Drafted(tokens[0], None, tuple(tokens[1:])) for tokens in ranked]

    def judge(
        self,
        logits: Tensor,
        token: int,
        proposal: Proposal | None,
        *,
        position: int,
        epoch: int,
    ) -> Judgement:
        choice = self.choose(logits, position=position, epoch=epoch)
        return Judgement(choice == token, choice)

    def judge_window(
        self,
        logits: Tensor,
        tokens: Sequence[int],
        proposals: Sequence[Proposal | None],
        *,
        start: int,
        epoch: int,
    ) -> WindowJudgement:
        if not tokens:
            return _NOTHING_TESTED
        scores = filtered_scores(logits[: len(tokens)], self.settings, self.vocab_limit)
        return _compare(gumbel_choices(scores, self.seed, range(start, start + len(tokens))), tokens)

    def choose(self, logits: Tensor, *, position: int, epoch: int) -> int:
        scores = filtered_scores(logits.unsqueeze(0), self.settings, self.vocab_limit)
        return gumbel_choices(scores, self.seed, [position])[0]


@dataclass(frozen=True)
class SpeculativeCoupling:
    """Accept x with ``min(1, p(x)/q(x))``, else draw from ``norm(max(0, p - q))`` (Leviathan et al., 2211.17192).

    Draft and target draw from separate streams, because correlated draws would change the answer's distribution.
    """

    settings: SamplingOptions
    vocab_limit: int
    seed: int
    session: int

    def draft(self, logits: Tensor, *, positions: Sequence[int], epoch: int, others: int = 0) -> list[Drafted]:
        drafted = []
        for probs, position in zip(processed(logits, self.settings, self.vocab_limit), positions, strict=True):
            u = uniform(self.seed, "draft", "propose", self.session, epoch, position)
            token, proposal = propose(probs, u)
            named = proposal.ids[: others + 1].tolist() if others else []
            drafted.append(Drafted(token, proposal, _others(named, token, others)))
        return drafted

    def judge(self, logits: Tensor, token: int, proposal: Proposal | None, *, position: int, epoch: int) -> Judgement:
        accepted, correction = self.judge_window(logits.unsqueeze(0), [token], [proposal], start=position, epoch=epoch)
        return Judgement(bool(accepted), token if correction is None else correction)

    def judge_window(
        self, logits: Tensor, tokens: Sequence[int], proposals: Sequence[Proposal | None], *, start: int, epoch: int
    ) -> WindowJudgement:
        if not tokens:
            return _NOTHING_TESTED
        checked = [check_proposal(q, token, self.vocab_limit) for q, token in zip(proposals, tokens, strict=True)]
        rows = processed(logits[: len(tokens)], self.settings, self.vocab_limit)
        # Only these few numbers leave the device, and one row after a rejection.
        drafted = torch.tensor(tokens, device=rows.device).unsqueeze(1)
        p = (rows.gather(1, drafted)[:, 0].double() / rows.sum(dim=1, dtype=torch.float64)).tolist()
        for index, (token, q) in enumerate(zip(tokens, checked, strict=True)):
            u = self._target_draw("accept", start + index, epoch)
            if not speculative_accept(p[index], q.probability(token), u):
                u = self._target_draw("residual", start + index, epoch)
                return WindowJudgement(index, residual_draw(normalised(rows[index]), q, u))
        return WindowJudgement(len(tokens), None)

    def choose(self, logits: Tensor, *, position: int, epoch: int) -> int:
        probs = processed(logits.unsqueeze(0), self.settings, self.vocab_limit)[0]
        return draw(normalised(probs), self._target_draw("choose", position, epoch))

    def _target_draw(self, purpose: Purpose, position: int, epoch: int) -> float:
        return uniform(self.seed, "target", purpose, self.session, epoch, position)


def _others(ranked: Sequence[int], token: int, count: int) -> tuple[int, ...]:
    return tuple(other for other in ranked if other != token)[:count]


_NOTHING_TESTED = WindowJudgement(0, None)


def _compare(choices: Sequence[int], tokens: Sequence[int]) -> WindowJudgement:
    accepted = agreement(choices, tokens)
    return WindowJudgement(accepted, choices[accepted] if accepted < len(tokens) else None)
