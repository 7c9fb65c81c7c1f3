"""How often is the target's token, where it rejects the draft's, one of the draft's best other tokens?

An engine answers about drawn clips under each coupling, and counts hits and misses as they occur. Then both models run
over each answer once more, and the coupling decides every position again. So a rank is known at every rejection,
whether its outcome was prepared or not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import torch

from benchmarks.never_slower import QUESTION
from pvlm.config import EngineConfig, OutcomesSetting
from pvlm.coordination.events import Command, Event
from pvlm.engine import Engine
from pvlm.results import Answer, ratio_or_none
from pvlm.speculation.coupling import coupling_for
from pvlm.telemetry.recorder import Recorded
from pvlm.workers.factory import load_backend
from pvlm.workers.placement import worker_spec
from pvlm_protocols.backend import Backend, Prompt, Role
from pvlm_protocols.messages import Open
from pvlm_protocols.turns import VideoFrames

COUPLINGS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "gumbel": {"temperature": 1.0, "coupling": "gumbel"},
    "speculative": {"temperature": 1.0, "coupling": "speculative"},
}
"""Options of an answer. Each clip has a seed of its own, its number."""
RANKS = 4
"""How many of the draft's other tokens are looked at."""


class HitRow(msgspec.Struct, frozen=True, kw_only=True):
    """One coupling.

    ``positions``: tokens of all answers; ``rejections``: those at which the coupling rejects the draft's token.
    ``by_rank``: the share of the rejections whose token is the draft's best other token, the second, ...; None without
    a rejection.
    ``hits``, ``late_hits``, ``misses``, ``hit_rate``: of the engine; see `pvlm.AnswerStats`.
    """

    coupling: str
    clips: int
    positions: int
    rejections: int
    by_rank: tuple[float | None, ...]
    hits: int
    late_hits: int
    misses: int
    hit_rate: float | None


@dataclass
class _Answered:
    """An answer, and how it was opened at the target: with the resized frames."""

    answer: Answer | None = None
    opening: Open | None = None

    def began(self, recorded: Recorded) -> None:
        self.opening = recorded.opening

    def handled(self, event: Event, commands: Sequence[Command]) -> None:
        """Nothing to do: the answer has the counts."""

    def ended(self, answer: Answer) -> None:
        self.answer = answer


async def measure_hit_rates(
    config: EngineConfig,
    clips: Sequence[np.ndarray],
    *,
    max_tokens: int,
    outcomes: OutcomesSetting,
    on_turn: Callable[[float], None],
) -> list[HitRow]:
    """Answer ``QUESTION`` about every clip under every coupling. Target and draft must resize frames alike.

    ``on_turn`` gets the finished fraction.
    """
    answered: dict[str, list[_Answered]] = {name: [] for name in COUPLINGS}
    async with Engine.create(config, method="parallel", outcomes=outcomes, prefix_cache_bytes=0) as engine:
        await engine.answer(clips[0], QUESTION, max_tokens=max_tokens)
        for index, clip in enumerate(clips):
            for name, options in COUPLINGS.items():
                recorder = _Answered()
                await engine.answer(clip, QUESTION, max_tokens=max_tokens, seed=index, trace=recorder, **options)
                answered[name].append(recorder)
            on_turn(0.8 * (index + 1) / len(clips))
    target, draft = _load(config, "target"), _load(config, "draft")
    rows = []
    for number, (name, answers) in enumerate(answered.items()):
        ranks = [rank for one in answers for rank in rejected_ranks(target, draft, one)]
        stats = [one.answer.stats for one in answers if one.answer is not None]
        hits, late, misses = (
            sum(getattr(each, field) for each in stats)
            for field in ("outcome_hits", "outcome_late_hits", "outcome_misses")
        )
        rows.append(
            HitRow(
                coupling=name,
                clips=len(answers),
                positions=sum(each.new_tokens for each in stats),
                rejections=len(ranks),
                by_rank=tuple(ratio_or_none(ranks.count(rank), len(ranks)) for rank in range(RANKS)),
                hits=hits,
                late_hits=late,
                misses=misses,
                hit_rate=ratio_or_none(hits + late, hits + late + misses),
            )
        )
        on_turn(0.8 + 0.2 * (number + 1) / len(answered))
    target.close()
    draft.close()
    return rows


def rejected_ranks(target: Backend, draft: Backend, answered: _Answered) -> list[int | None]:
    """For each position of an answer at which its coupling rejects the draft's token: the rank of the target's token
    among the draft's other tokens, from 0; None where it is none of the first `RANKS`.
    """
    answer, opening = answered.answer, answered.opening
    assert answer is not None
    assert opening is not None
    coupling = coupling_for(opening.sampling, session=opening.session)
    ranks: list[int | None] = []
    theirs, ours = _rows(target, opening, answer.tokens), _rows(draft, opening, answer.tokens)
    drafts = coupling.draft(ours, positions=range(len(ours)), epoch=0, others=RANKS)
    for position, (judging, drafted) in enumerate(zip(theirs, drafts, strict=True)):
        accepted, token = coupling.judge(judging, drafted.token, drafted.proposal, position=position, epoch=0)
        if not accepted:
            ranks.append(drafted.others.index(token) if token in drafted.others else None)
    return ranks


def _rows(backend: Backend, opening: Open, tokens: Sequence[int]) -> torch.Tensor:
    """The logits that decide each of the answer's tokens, float32 ``(len(tokens), vocab_size)``."""
    ((video, question),) = (turn.parts for turn in opening.turns)
    assert isinstance(video, VideoFrames)
    prompt = Prompt(str(question), video.pixels, video.timestamps_s)
    session = backend.open(prompt, len(tokens))
    try:
        rows = [session.prefill().clone()[None]]
        if tokens[:-1]:
            rows.append(session.extend(tokens[:-1]).clone())
        return torch.cat(rows)
    finally:
        session.close()


def _load(config: EngineConfig, role: Role) -> Backend:
    model, name = config.checkpoint(role), config.backend_of(role)
    assert model is not None
    spec = worker_spec(config, role, model, name, alone=False)
    return load_backend(name, spec.load_options(role), lambda message: None).backend
