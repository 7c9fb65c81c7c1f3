"""The statistics of one answer: when it reached which moment, who wrote its tokens, and `AnswerStats` from these."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import msgspec

from pvlm.answer.request import Request
from pvlm.coordination.events import Emit
from pvlm.coordination.statistics import Counts
from pvlm.results import AnswerStats, median_or_none, ratio_or_none
from pvlm.video import Video

Moment = Literal["asked", "queued", "admitted", "reading", "opened", "prefilled", "first_token", "finished"]
"""In this order. ``queued``: the models are loaded; ``reading``: of the video; ``opened``: the session."""


@dataclass
class Timeline:
    """When one answer reached which `Moment`, by ``time.perf_counter``, and the origin of each of its tokens."""

    origins: list[str] = field(default_factory=list)
    """Who wrote each token: see `AnswerStats.origins`."""
    _at_s: dict[Moment, float] = field(default_factory=dict)

    def reach(self, moment: Moment) -> None:
        """Note the time; only the first time counts."""
        self._at_s.setdefault(moment, time.perf_counter())

    def at_s(self, moment: Moment) -> float:
        return self._at_s[moment]

    def between_s(self, earlier: Moment, later: Moment) -> float:
        return self._at_s[later] - self._at_s[earlier]

    def written(self, emitted: Emit, count: int) -> None:
        """Note the origins of the first ``count`` tokens that were emitted together."""
        self.reach("first_token")
        for index in range(count):
            if index < emitted.accepted:
                self.origins.append("d")
            else:
                self.origins.append("c" if emitted.corrected and index == emitted.accepted else "t")


def answer_stats(
    timeline: Timeline, counts: Counts, request: Request, videos: Sequence[Video], seed: int | None
) -> AnswerStats:
    """The statistics of a finished answer. Figures that `Counts` has by the same name are taken from there.

    ``videos``: those of the prompt, and its images. ``seed``: the caller's.
    """
    new_tokens = len(timeline.origins)
    decode_s = timeline.between_s("prefilled", "finished")
    figures = {
        **vars(counts),
        "method": request.method,
        "target_backend": request.backends["target"],
        "draft_backend": request.backends.get("draft"),
        "total_s": timeline.between_s("asked", "finished"),
        "startup_s": timeline.between_s("asked", "queued"),
        "waiting_s": timeline.between_s("queued", "reading"),
        "video_s": timeline.between_s("reading", "opened"),
        "prefill_s": timeline.between_s("opened", "prefilled"),
        "decode_s": decode_s,
        "time_to_first_token_s": timeline.between_s("asked", "first_token"),
        "new_tokens": new_tokens,
        "tokens_per_second": ratio_or_none(new_tokens, decode_s),
        "target_pass_ms": median_or_none(counts.target_pass_ms),
        "target_passes_ms": list(zip(counts.target_pass_tokens, counts.target_pass_ms, strict=True)),
        "target_idle_ms": median_or_none(counts.idle_ms),
        "draft_token_ms": median_or_none(counts.draft_token_ms),
        **counts.acceptance(),
        "hit_rate": counts.hit_rate(),
        "origins": "".join(timeline.origins),
        "prune": request.target.pruning.method if request.draft is not None else "none",
        "target_prefill_ms": counts.prefill_ms.get("target"),
        "draft_prefill_ms": counts.prefill_ms.get("draft"),
        "frame_indices": tuple(index for video in videos for index in video.indices),
        "source_frames": sum(video.source_frames for video in videos),
        "source_fps": videos[0].source_fps if len(videos) == 1 else None,
        "seed": seed,
        "coupling": request.target.sampling.coupling,
        "ignored_options": request.ignored_options,
    }
    return msgspec.convert(figures, AnswerStats)
