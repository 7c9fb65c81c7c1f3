"""What a `Coordinator` counts and times."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Counts:
    """What happened in one session. Times in ms; only tokens of the answer are counted.

    ``idle_ms``: the gap before each pass of the target but the first. ``coordination_ms``: what is left of the gap
    without the time in which the draft was computing (see `Gap`).
    """

    target_passes: int = 0
    target_pass_ms: list[float] = field(default_factory=list)
    target_pass_tokens: list[int] = field(default_factory=list)
    idle_ms: list[float] = field(default_factory=list)
    coordination_ms: list[float] = field(default_factory=list)
    drafted_tokens: int = 0
    draft_token_ms: list[float] = field(default_factory=list)
    accepted_tokens: int = 0
    rejected_tokens: int = 0
    rollbacks: int = 0
    rests: int = 0
    windows: list[int] = field(default_factory=list)
    dropped_windows: int = 0
    dropped_verdicts: int = 0
    prompt_tokens: int = 0
    video_tokens: int = 0
    kept_video_tokens: int = 0
    prefill_ms: dict[str, float] = field(default_factory=dict)
    draft_lost: str = ""
    draft_rejoins: int = 0
    target_recoveries: int = 0
