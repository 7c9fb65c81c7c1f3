"""Couplings: how a drafted token and the target's own draw are tied to each other.

All three leave the target's distribution unchanged. They differ in what decides a token: `GreedyCoupling` the largest
logit, `GumbelCoupling` noise that both sides share, `SpeculativeCoupling` an accept-or-replace draw (the most accepted
of the three).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from pvlm.speculation.proposals import PROPOSAL_SIZE, Proposal, check_proposal, propose
from pvlm.speculation.randomness import Purpose, uniform
from pvlm.speculation.sampling import draw, filtered_scores, greedy, greedy_rows, normalised, processed
from pvlm.speculation.verification import accepted_count, gumbel_choices, residual_draw, speculative_accept
from pvlm_protocols.messages import Sampling, SamplingOptions


class Drafted(NamedTuple):
    """A drafted token, and the proposal it was drawn from (None: its coupling needs none)."""

    token: int
    proposal: Proposal | None


class Judgement(NamedTuple):
    """``token``: the drafted one if it was ``accepted``, else the target's own in its place."""

    accepted: bool
    token: int


class WindowJudgement(NamedTuple):
    """``accepted``: drafted tokens that hold; ``correction``: the token after them, None if all of them hold."""

    accepted: int
    correction: int | None


class Coupling(Protocol):
    """One answer's rule for drawing and verifying.

    Logits are float ``(V,)`` or ``(n, V)`` on any device. ``position`` is the answer index of the token that is
    decided, and ``epoch`` the drafting epoch; together they key the random draws. **Each position is drawn once**: for
    a token that is committed, call none of these again, and never look at p(x) before you decide whether to verify.
    """

    def draft(self, logits: Tensor, *, position: int, epoch: int) -> Drafted:
        """Draft side: draw a token from one row of the draft's logits."""
        ...

    def judge(self, logits: Tensor, token: int, proposal: Proposal | None, *, position: int, epoch: int) -> Judgement:
        """Target side: accept or correct one drafted token. Raises InvalidProposal if it cannot have been drawn."""
        ...

    def judge_window(
        self, logits: Tensor, tokens: Sequence[int], proposals: Sequence[Proposal | None], *, start: int, epoch: int
    ) -> WindowJudgement:
        """`judge` along a window: row i of ``logits`` decides ``tokens[i]`` at position ``start + i``.

        Further rows, such as the one behind the last token, are not looked at. Nothing behind a rejection is drawn.
        """
        ...

    def choose(self, logits: Tensor, *, position: int, epoch: int) -> int:
        """Target side: draw a token alone."""
        ...


def coupling_for(sampling: Sampling, *, session: int) -> Coupling:
    """The coupling that ``sampling`` names. Raises ValueError for ``auto``, which `resolve_coupling` resolves first."""
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
    """A token is accepted when it has the target's largest logit; of equal ones the lowest id."""

    vocab_limit: int

    def draft(self, logits: Tensor, *, position: int, epoch: int) -> Drafted:
        return Drafted(greedy(logits, self.vocab_limit), None)

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
    """Both sides add the same noise and take the argmax; a token is accepted when they agree.

    The noise depends on (seed, position, id) alone, so the answer does not depend on windows, timing, epochs or
    sessions.
    """

    settings: SamplingOptions
    vocab_limit: int
    seed: int
    draft_ids: int = PROPOSAL_SIZE

    def draft(self, logits: Tensor, *, position: int, epoch: int) -> Drafted:
        scores = filtered_scores(logits.unsqueeze(0), self.settings, self.vocab_limit)[0]
        best = scores.topk(min(self.draft_ids, len(scores)))
        return Drafted(gumbel_choices(best.values.unsqueeze(0), self.seed, [position], best.indices)[0], None)

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

    Draft and target draw from separate streams: were their draws correlated, the answer's distribution would change.
    """

    settings: SamplingOptions
    vocab_limit: int
    seed: int
    session: int
    proposal_size: int = PROPOSAL_SIZE

    def draft(self, logits: Tensor, *, position: int, epoch: int) -> Drafted:
        probs = processed(logits.unsqueeze(0), self.settings, self.vocab_limit)[0]
        u = uniform(self.seed, "draft", "propose", self.session, epoch, position)
        return Drafted(*propose(probs, u, self.proposal_size))

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
        # Only these few numbers leave the device, and the one row that is drawn from after a rejection.
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


_NOTHING_TESTED = WindowJudgement(0, None)


def _compare(choices: Sequence[int], tokens: Sequence[int]) -> WindowJudgement:
    accepted = accepted_count(choices, tokens)
    return WindowJudgement(accepted, choices[accepted] if accepted < len(tokens) else None)
