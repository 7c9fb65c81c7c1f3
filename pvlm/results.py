"""What a user gets: `Answer`, its `AnswerStats`, and the `Chunk` of a stream."""

from __future__ import annotations

from statistics import median

import msgspec

from pvlm_protocols.messages import FinishReason as FinishReason


class AnswerStats(msgspec.Struct, frozen=True, kw_only=True):
    """What an answer took. Names ending in ``_s`` are seconds, in ``_ms`` milliseconds; null where nothing was
    measured.

    ``acceptance_rate`` is accepted / (accepted + rejected) over drafted tokens that were *tested*: those behind a
    rejection were not. ``mean_accepted_length`` is accepted tokens per rejection, across windows. ``windows`` holds
    the drafted tokens of each verified window.
    """

    method: str
    total_s: float
    """From the call to the last token, waiting and reading the video included."""
    waiting_s: float
    """Until the engine had a place for it (`EngineConfig.max_sessions`)."""
    video_s: float
    """Reading, sampling and resizing the frames."""
    prefill_s: float
    """From opening the session to the target's first logits."""
    decode_s: float
    """From there to the last token."""
    time_to_first_token_s: float
    new_tokens: int
    tokens_per_second: float | None
    """New tokens over ``decode_s``."""
    target_passes: int
    target_pass_ms: float | None
    """Median time of a pass in decoding."""
    target_passes_ms: tuple[tuple[int, float], ...]
    """Each pass in decoding: the tokens it took in, and its time."""
    target_idle_ms: float | None
    """Median time between two passes of the target."""
    coordination_ms: tuple[float, ...]
    """For each pass of the target but the first: the time since the last one, less that in which the draft was still
    computing what this pass took in, or leaving what a rollback had made worthless.
    """
    drafted_tokens: int
    draft_token_ms: float | None
    """Median over windows of the draft's time per token."""
    accepted_tokens: int
    rejected_tokens: int
    acceptance_rate: float | None
    draft_efficiency: float | None
    """Accepted over drafted tokens."""
    mean_accepted_length: float | None
    rollbacks: int
    rests: int
    """How often the target was left alone for a while, since drafting did not pay."""
    origins: str
    """Who wrote each token: ``d`` the draft (accepted), ``c`` the target in place of a rejected draft token, ``t`` the
    target alone.
    """
    windows: tuple[int, ...]
    dropped_windows: int
    prompt_tokens: int
    video_tokens: int
    kept_video_tokens: int
    prune: str
    draft_prefill_ms: float | None
    frame_indices: tuple[int, ...]
    source_frames: int
    source_fps: float | None
    seed: int | None
    coupling: str
    draft_lost: str
    """Why some of this answer, or all of it, was written without a draft; empty if none was."""
    draft_rejoins: int
    """How often a draft that was started again joined this answer."""
    target_recoveries: int
    """How often a target that was started again went on with this answer."""


class Chunk(msgspec.Struct, frozen=True):
    """A piece of an answer: text that will not change any more, and the token ids settled since the last chunk.

    The two need not cover each other: an incomplete character or a possible stop string is held back.
    """

    text: str
    tokens: tuple[int, ...]


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """An answer. Prints as its text."""

    text: str
    tokens: tuple[int, ...]
    finish_reason: FinishReason
    stats: AnswerStats

    def __str__(self) -> str:
        return self.text


def median_or_none(values: list[float]) -> float | None:
    return median(values) if values else None


def ratio_or_none(part: float, whole: float) -> float | None:
    return part / whole if whole else None
