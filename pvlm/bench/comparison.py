"""All methods side by side on the same clips, in turns, so that a drift of the machine affects all alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from operator import eq
from statistics import fmean, median
from typing import Any

import msgspec

from pvlm.bench.methods import WHOLE, Clip, Contender, Measurement, OpenContenders
from pvlm.bench.planning import time_passes
from pvlm.bench.rows import Quartiles, pooled_acceptance, quartiles
from pvlm.config import EngineConfig
from pvlm.errors import OptionError
from pvlm.results import AnswerStats, median_or_none
from pvlm.speculation.estimates import PassTimeEstimate
from pvlm.speculation.theory import MeasuredCurve, best_parallel_speedup, best_vanilla_window

GAMMA_MAX = 16


class MethodRow(msgspec.Struct, frozen=True, kw_only=True):
    """One method. A speed-up is plain decoding's time over this method's time.

    A ratio is taken within a round; the row has the median over the rounds, and the first and third quartile. It is
    null if plain decoding on all cores was not measured. ``speedup_*``: of ``decode_s``; ``end_to_end_*``: of prefill
    and decoding together. Times are those of a mean answer, medians over the rounds, without reading and resizing the
    video. ``window``: mean drafted tokens of the passes over drafted tokens. ``same_tokens``: whether every answer has
    the tokens of plain decoding (``ar``). ``peak_rss_mb``: peak of the resident memory while the method answered, with
    weights, summed over its processes: target, and draft if it drafts; for transformers' loops one process with both
    models. The engine's own process does not count.

    ``lossy``: the target sees a part of the video, so it gives another answer. ``agreement``: the share of tokens that
    are equal, at the same position, to those of plain decoding; ``exact_answers``: the share of answers with all tokens
    equal. Of a lossy method ``same_tokens`` is whether every round has the same, and its answers are shorter or longer:
    ``decode_s``, and what is computed from it, is scaled to the length of plain decoding's answer. It is compared with
    plain decoding by the same process (``pruned-none``), because no messages travel in either.

    ``predicted``: the speed-up by theorem 7 (`parallel` methods) or 4 (sd, specvlm, parallel-no-pd), at the best window
    for the measured acceptance, T_q (measured while the target works) and T_p(n) (``target_ms``, in the row of ``ar``).
    ``predicted_busy``: theorem 7 with the times of the method's own passes, measured while the draft works.
    ``coordination_share``: the share of decoding that draft and target lost between passes, which the theorems do not
    include. ``note``: the caller's remark about the run.
    """

    method: str
    speedup_vs_ar: float
    speedup_vs_ar_quartiles: Quartiles
    speedup_vs_ar_all_cores: float | None
    speedup_vs_ar_all_cores_quartiles: Quartiles | None
    end_to_end_vs_ar: float
    end_to_end_vs_ar_all_cores: float | None
    predicted: float | None
    predicted_busy: float | None
    tokens_per_second: float
    time_to_first_token_s: float
    prefill_s: float
    decode_s: float
    mean_accepted_length: float | None
    acceptance_rate: float | None
    window: float | None
    same_tokens: bool
    lossy: bool
    agreement: float
    exact_answers: float
    peak_rss_mb: float
    target_pass_ms: float | None
    draft_token_ms: float | None
    coordination_share: float | None
    tokens: int
    clips: int
    rounds: int
    target_layers: int
    note: str
    target_ms: dict[int, float] | None

    @property
    def of_predicted(self) -> float | None:
        """The measured share of the predicted speed-up."""
        return None if self.predicted is None else self.speedup_vs_ar / self.predicted


@dataclass
class _Record:
    """The measurements of one method: for each round a list with one for each clip."""

    contender: Contender
    rounds: list[list[Measurement]] = field(default_factory=list)

    @property
    def all(self) -> list[Measurement]:
        return [measurement for measured in self.rounds for measurement in measured]

    def per_round(self, value: Callable[[Measurement], float]) -> list[float]:
        """The mean over the clips, for each round."""
        return [fmean(map(value, measured)) for measured in self.rounds]


def turns(chosen: Sequence[Contender], number: int) -> list[Contender]:
    """The order of a round. Each round starts one contender later, so that none always follows the same one."""
    first = number % len(chosen)
    return [*chosen[first:], *chosen[:first]]


async def measure_methods(
    config: EngineConfig,
    clips: Sequence[Clip],
    chosen: Sequence[Contender],
    *,
    rounds: int = 5,
    max_tokens: int = 256,
    note: str = "",
    on_turn: Callable[[float], None] = lambda fraction: None,
) -> list[MethodRow]:
    """Answer the clips' questions greedily by every method, ``rounds`` times after a warm-up round.

    ``chosen``: see `pvlm.bench.methods.contenders`. ``note``: a remark that every row carries. ``on_turn`` gets the
    finished fraction, 0 to 1.

    Raises OptionError for less than one round, two tokens or one clip, and the errors of `Engine.answer`.
    """
    check_extent(rounds, max_tokens)
    if not clips:
        raise OptionError("no clip was given: at least 1 is needed")
    records = {contender.name: _Record(contender) for contender in chosen}
    passes = PassTimeEstimate()
    drafting = any(contender.drafts and contender.in_engine for contender in chosen)
    done, turns_in_all = 0, (rounds + 1) * len(clips) * len(chosen)
    async with OpenContenders(config, chosen, max_tokens) as opened:
        for number in range(rounds + 1):
            measured: dict[str, list[Measurement]] = {name: [] for name in records}
            for clip in clips:
                for contender in turns(chosen, number):
                    measured[contender.name].append(await opened.answer(contender, clip))
                    done += 1
                    on_turn(done / turns_in_all)
                if number > 0 and drafting:
                    await time_passes(passes, _stats_of(opened, clip))
            if number > 0:
                for name, of_clips in measured.items():
                    records[name].rounds.append(of_clips)
        layers = opened.pair.models["target"].layers
    return _rows(records, passes.points() if drafting else None, layers, note)


def check_extent(rounds: int, max_tokens: int) -> None:
    """Raises OptionError if there would be nothing to measure."""
    if rounds < 1:
        raise OptionError(f"{rounds} rounds: at least 1 is needed")
    if max_tokens < 2:
        raise OptionError(f"answers of {max_tokens} tokens: the first comes from the prefill, so at least 2 are needed")


def _stats_of(opened: OpenContenders, clip: Clip) -> Callable[..., Any]:
    async def stats_of(**how: Any) -> AnswerStats:
        answer = await opened.pair.answer(clip.frames, clip.question, num_frames=len(clip.frames), prune="none", **how)
        return answer.stats

    return stats_of


# ---- rows ---------------------------------------------------------------------------------------------------------


def _rows(records: dict[str, _Record], target_ms: dict[int, float] | None, layers: int, note: str) -> list[MethodRow]:
    plain, all_cores = records["ar"], records.get("ar-all-cores")
    rows = []
    for name, record in records.items():
        answers = record.all
        beta, mean_length = pooled_acceptance(answers)
        draft_ms = median_or_none([m.draft_token_ms for m in answers if m.draft_token_ms is not None])
        windows = [size for m in answers for size in m.windows]
        lossy = record.contender.lossy
        timed = _of_equal_length(record, plain) if lossy else record
        base, everywhere = (records[WHOLE], None) if lossy else (plain, all_cores)
        ratios = _ratios(base, timed, _decode_s)
        ratios_everywhere = _ratios(everywhere, timed, _decode_s) if everywhere else None
        agreements = [
            equal_share(one.tokens, full.tokens) for one, full in zip(record.rounds[0], plain.rounds[0], strict=True)
        ]
        speeds = [sum(len(m.tokens) for m in clips) / sum(map(_decode_s, clips)) for clips in record.rounds]
        rows.append(
            MethodRow(
                method=name,
                speedup_vs_ar=median(ratios),
                speedup_vs_ar_quartiles=quartiles(ratios),
                speedup_vs_ar_all_cores=median(ratios_everywhere) if ratios_everywhere else None,
                speedup_vs_ar_all_cores_quartiles=quartiles(ratios_everywhere) if ratios_everywhere else None,
                end_to_end_vs_ar=median(_ratios(base, timed, _total_s)),
                end_to_end_vs_ar_all_cores=median(_ratios(everywhere, timed, _total_s)) if everywhere else None,
                predicted=_predicted(record.contender, beta, draft_ms, target_ms),
                predicted_busy=_predicted_busy(record, beta, draft_ms, target_ms),
                tokens_per_second=median(speeds),
                time_to_first_token_s=median(record.per_round(lambda m: m.first_token_s)),
                prefill_s=median(record.per_round(lambda m: m.prefill_s)),
                decode_s=median(timed.per_round(_decode_s)),
                mean_accepted_length=mean_length,
                acceptance_rate=beta,
                window=fmean(windows) if windows else None,
                same_tokens=same_tokens((record if lossy else plain).rounds, record.rounds),
                lossy=lossy,
                agreement=fmean(agreements),
                exact_answers=fmean(agreement == 1 for agreement in agreements),
                peak_rss_mb=max(m.peak_mb for m in answers),
                target_pass_ms=median_or_none([m.target_pass_ms for m in answers if m.target_pass_ms is not None]),
                draft_token_ms=draft_ms,
                coordination_share=median(m.coordination_s / m.decode_s for m in answers)
                if windows and draft_ms
                else None,
                tokens=sum(len(m.tokens) for m in record.rounds[0]),
                clips=len(record.rounds[0]),
                rounds=len(record.rounds),
                target_layers=layers,
                note=note,
                target_ms=target_ms if name == "ar" else None,
            )
        )
    return rows


def same_tokens(reference: Sequence[Sequence[Measurement]], rounds: Sequence[Sequence[Measurement]]) -> bool:
    """Whether every answer of every round has the tokens that the reference's first round has for its clip."""
    return all(
        answer.tokens == expected.tokens
        for answers in rounds
        for answer, expected in zip(answers, reference[0], strict=True)
    )


def _of_equal_length(record: _Record, plain: _Record) -> _Record:
    """The record with the times that answers of plain decoding's length would have taken."""
    rounds = [
        [
            replace(one, decode_s=one.decode_s * (len(full.tokens) - 1) / max(1, len(one.tokens) - 1))
            for one, full in zip(answers, plain.rounds[0], strict=True)
        ]
        for answers in record.rounds
    ]
    return _Record(record.contender, rounds)


def equal_share(tokens: Sequence[int], full: Sequence[int]) -> float:
    """The share of positions at which two answers have the same token. One that an answer lacks counts as different."""
    longer = max(len(tokens), len(full))
    return sum(map(eq, tokens, full)) / longer if longer else 1.0


def _decode_s(measurement: Measurement) -> float:
    return measurement.decode_s


def _total_s(measurement: Measurement) -> float:
    return measurement.total_s


def _ratios(base: _Record, record: _Record, seconds: Callable[[Measurement], float]) -> list[float]:
    """The base's time over the method's, for each round."""
    pairs = zip(base.per_round(seconds), record.per_round(seconds), strict=True)
    return [base_s / own_s for base_s, own_s in pairs]


def _predicted(
    contender: Contender, beta: float | None, draft_ms: float | None, target_ms: dict[int, float] | None
) -> float | None:
    """The best speed-up over windows of up to `GAMMA_MAX` tokens, by the theorem of the method."""
    if not contender.in_engine or beta is None or draft_ms is None or target_ms is None:
        return None
    curve = MeasuredCurve(target_ms)
    if _takes_turns(contender):
        return best_vanilla_window(beta, curve, draft_ms, GAMMA_MAX).speedup
    return best_parallel_speedup(beta, curve, draft_ms, GAMMA_MAX)


def _predicted_busy(
    record: _Record, beta: float | None, draft_ms: float | None, target_ms: dict[int, float] | None
) -> float | None:
    """As `_predicted` for parallel decoding, with passes that are slower than T_p(n) because the draft works too.

    Plain decoding's pass is not slower.
    """
    contender = record.contender
    if not contender.in_engine or beta is None or draft_ms is None or target_ms is None or _takes_turns(contender):
        return None
    passes = PassTimeEstimate()
    for measurement in record.all:
        for tokens, ms in measurement.target_passes_ms:
            passes.observe(tokens, ms)
    if not passes.measured:
        return None
    busy = passes.curve()
    return best_parallel_speedup(beta, busy, draft_ms, GAMMA_MAX) * MeasuredCurve(target_ms)(1) / busy(1)


def _takes_turns(contender: Contender) -> bool:
    return contender.options["method"] == "sd" or contender.options.get("parallel_decode") is False
