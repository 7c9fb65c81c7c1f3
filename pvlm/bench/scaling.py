"""Prefill, the models' times, the speed-up and memory over the number of frames."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import median
from typing import TYPE_CHECKING

import msgspec

from pvlm.bench.comparison import check_extent, turns
from pvlm.bench.methods import Clip, Measurement, OpenContenders, contenders, read_clip
from pvlm.bench.rows import Quartiles, measured, pooled_acceptance, quartiles
from pvlm.config import EngineConfig
from pvlm.errors import OptionError
from pvlm.results import median_or_none

if TYPE_CHECKING:
    from pvlm.video.reading import VideoSource

FRAMES = (8, 16, 32, 64, 128)
METHODS = ("ar", "ar-all-cores", "parallel")


class ScalingRow(msgspec.Struct, frozen=True, kw_only=True):
    """One number of frames. Medians over the rounds; ratios are within a round, with their first and third quartile.

    ``prefill_s``, ``ar_prefill_s``, ``ar_all_cores_prefill_s``: until the target's first logits, by parallel decoding
    and by plain decoding, without reading the video. ``target_pass_ms``: T_p(1), of plain decoding;
    ``draft_token_ms``: T_q, while the target works. Speed-ups of parallel decoding: of decoding alone, and
    ``end_to_end_*`` with the prefill. ``peak_rss_mb``, ``ar_peak_rss_mb``: peak of the resident memory, for draft and
    target together, and for the target that decodes alone. ``note``: the caller's remark about the run.
    """

    frames: int
    prompt_tokens: int
    video_tokens: int
    prefill_s: float
    ar_prefill_s: float
    ar_all_cores_prefill_s: float
    target_pass_ms: float
    draft_token_ms: float
    speedup_vs_ar: float
    speedup_vs_ar_quartiles: Quartiles
    end_to_end_vs_ar: float
    end_to_end_vs_ar_quartiles: Quartiles
    end_to_end_vs_ar_all_cores: float
    end_to_end_vs_ar_all_cores_quartiles: Quartiles
    acceptance_rate: float | None
    peak_rss_mb: float
    ar_peak_rss_mb: float
    tokens: int
    same_tokens: bool
    rounds: int
    note: str

    @property
    def c(self) -> float:
        """T_p(1) / T_q."""
        return self.target_pass_ms / self.draft_token_ms


async def measure_scaling(
    config: EngineConfig,
    video: VideoSource,
    question: str,
    *,
    frames: Sequence[int] = FRAMES,
    rounds: int = 5,
    max_tokens: int = 64,
    note: str = "",
    on_turn: Callable[[float], None] = lambda fraction: None,
) -> list[ScalingRow]:
    """Answer a question about each number of frames of a video by parallel and by plain decoding, in turns.

    Measures ``rounds`` times after a warm-up round. The frames of a shorter video are repeated, which costs as much as
    other frames. ``note``: a remark that every row carries. ``on_turn`` gets the finished fraction, 0 to 1.

    Raises OptionError for invalid numbers, and the errors of `Engine.answer`.
    """
    check_extent(rounds, max_tokens)
    if not frames or min(frames) < 1:
        raise OptionError(f"{', '.join(map(str, frames)) or 'no'} frames: each number must be at least 1")
    clips = {count: await read_clip(config, video, question, count, repeat=True) for count in sorted(set(frames))}
    chosen = contenders(METHODS)
    by_count: dict[int, dict[str, list[Measurement]]] = {
        count: {contender.name: [] for contender in chosen} for count in clips
    }
    done, turns_in_all = 0, (rounds + 1) * len(clips) * len(chosen)
    async with OpenContenders(config, chosen, max_tokens) as opened:
        for number in range(rounds + 1):
            for count, clip in clips.items():
                for contender in turns(chosen, number):
                    measurement = await opened.answer(contender, clip)
                    if number > 0:
                        by_count[count][contender.name].append(measurement)
                    done += 1
                    on_turn(done / turns_in_all)
    return [_row(clip, by_count[count], note) for count, clip in clips.items()]


def _row(clip: Clip, by_method: dict[str, list[Measurement]], note: str) -> ScalingRow:
    plain, everywhere, parallel = (by_method[name] for name in METHODS)
    decode = [own.decode_s / ours.decode_s for own, ours in zip(plain, parallel, strict=True)]
    total = [own.total_s / ours.total_s for own, ours in zip(plain, parallel, strict=True)]
    total_everywhere = [own.total_s / ours.total_s for own, ours in zip(everywhere, parallel, strict=True)]
    return ScalingRow(
        frames=len(clip.frames),
        prompt_tokens=plain[0].prompt_tokens,
        video_tokens=plain[0].video_tokens,
        prefill_s=median(m.prefill_s for m in parallel),
        ar_prefill_s=median(m.prefill_s for m in plain),
        ar_all_cores_prefill_s=median(m.prefill_s for m in everywhere),
        target_pass_ms=_median_ms([m.target_pass_ms for m in plain]),
        draft_token_ms=_median_ms([m.draft_token_ms for m in parallel]),
        speedup_vs_ar=median(decode),
        speedup_vs_ar_quartiles=quartiles(decode),
        end_to_end_vs_ar=median(total),
        end_to_end_vs_ar_quartiles=quartiles(total),
        end_to_end_vs_ar_all_cores=median(total_everywhere),
        end_to_end_vs_ar_all_cores_quartiles=quartiles(total_everywhere),
        acceptance_rate=pooled_acceptance(parallel).rate,
        peak_rss_mb=max(m.peak_mb for m in parallel),
        ar_peak_rss_mb=max(m.peak_mb for m in plain),
        tokens=len(plain[0].tokens),
        same_tokens=all(m.tokens == plain[0].tokens for m in (*plain, *everywhere, *parallel)),
        rounds=len(plain),
        note=note,
    )


def _median_ms(values: Sequence[float | None]) -> float:
    return measured(median_or_none([value for value in values if value is not None]))
