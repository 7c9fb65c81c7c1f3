"""Statistics of an answer that nobody gave."""

from __future__ import annotations

from typing import Any

import msgspec

from pvlm.results import AnswerStats

DEFAULTS: dict[str, Any] = {
    "method": "parallel", "total_s": 5.0, "startup_s": 3.9, "waiting_s": 0.0, "video_s": 0.1, "prefill_s": 0.6,
    "decode_s": 0.4, "time_to_first_token_s": 4.6, "new_tokens": 4, "tokens_per_second": 10.0, "target_passes": 2,
    "target_pass_ms": 2.0, "target_passes_ms": (), "target_idle_ms": None, "coordination_ms": (), "drafted_tokens": 4,
    "draft_token_ms": 0.5, "accepted_tokens": 3, "rejected_tokens": 1, "acceptance_rate": 0.75,
    "draft_efficiency": 0.75, "mean_accepted_length": 3.0, "rollbacks": 1, "rests": 0, "origins": "dddc",
    "windows": (4,), "dropped_windows": 0, "prompt_tokens": 30, "video_tokens": 16, "kept_video_tokens": 8,
    "prune": "uv", "target_prefill_ms": 2.0, "draft_prefill_ms": 1.0, "frame_indices": (0, 1), "source_frames": 2,
    "source_fps": 8.0, "seed": None, "coupling": "greedy", "draft_lost": "", "draft_rejoins": 0, "target_recoveries": 0,
}  # fmt: skip


def stats(**changes: Any) -> AnswerStats:
    """Statistics of four tokens, with changes. Fields of a later version have an empty value."""
    fields = {
        field.name: DEFAULTS.get(field.name, field.type() if callable(field.type) else None)
        for field in msgspec.structs.fields(AnswerStats)
        if field.required or field.name in DEFAULTS
    }
    return msgspec.convert({**fields, **changes}, AnswerStats)
