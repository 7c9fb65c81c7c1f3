"""Types of the keywords of `pvlm.Engine`, so that editors complete them and type checkers refuse misspelt ones.

The structs `pvlm.EngineConfig` and `pvlm.AnswerOptions` define and document the same names; a test compares them.
"""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from typing import Literal, TypedDict

_Method = Literal["auto", "parallel", "sd", "ar"]


class PretrainedKeywords(TypedDict, total=False):
    """Settings of an engine but for its models: see `pvlm.EngineConfig`."""

    backend: str
    draft_backend: str | None
    method: _Method
    parallel_prefill: bool
    parallel_decode: bool
    window: Literal["auto"] | int
    outcomes: Literal["auto"] | int
    prune: str
    prune_ratio: float
    early_layer: int
    compact_positions: bool
    transport: Literal["ipc", "tcp", "inproc"]
    device: str
    draft_device: str | None
    dtype: str
    draft_dtype: str | None
    threads: int | None
    draft_threads: int | None
    affinity: Sequence[int] | None
    draft_affinity: Sequence[int] | None
    target_listen: str | None
    draft_listen: str | None
    keys: str | PathLike[str] | None
    trust_remote_code: bool
    allow_pickle: bool
    video_reader: str
    max_sessions: int
    max_waiting: int
    max_video_bytes: int
    prefix_cache_bytes: int | None
    start_timeout_s: float
    decode_timeout_s: float
    draft_restarts: int
    target_restarts: int
    restart_window_s: float
    hang_timeout_s: float
    close_timeout_s: float
    stream_idle_timeout_s: float


class EngineKeywords(PretrainedKeywords, total=False):
    """Settings of an engine: see `pvlm.EngineConfig`."""

    target: str | PathLike[str]
    draft: str | PathLike[str] | None


class FrameKeywords(TypedDict, total=False):
    """Options that choose the frames of a video: see `pvlm.AnswerOptions`."""

    num_frames: int | None
    fps: float | None
    start: float | None
    end: float | None


class QuestionKeywords(TypedDict, total=False):
    """Options of one answer about frames that were chosen before: see `pvlm.AnswerOptions`."""

    max_tokens: int
    max_new_tokens: int
    """Another name of ``max_tokens``."""
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    seed: int | None
    coupling: Literal["auto", "speculative", "gumbel"]
    stop: Sequence[str]
    stop_token_ids: Sequence[int]
    ignore_eos: bool
    method: _Method | None
    parallel_prefill: bool | None
    parallel_decode: bool | None
    prune: str | None
    prune_ratio: float | None
    window: Literal["auto"] | int | None
    outcomes: Literal["auto"] | int | None


class AnswerKeywords(QuestionKeywords, FrameKeywords, total=False):
    """Options of one answer: see `pvlm.AnswerOptions`."""
