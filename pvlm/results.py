"""Results: `Answer`, its `AnswerStats`, and the `Chunk` of a stream."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median
from typing import Any

import msgspec

from pvlm.redaction import shown
from pvlm.settings.documentation import documented
from pvlm_protocols.messages import FinishReason

DIGITS = 4
"""Decimal places of a float in JSON: a tenth of a millisecond, where it is in seconds."""


class Result(msgspec.Struct, frozen=True):
    """What results have in common: they become dictionaries, and so JSON."""

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain dictionaries, lists, strings and numbers. Floats have four decimal places."""
        found: dict[str, Any] = _rounded(msgspec.to_builtins(self))
        return found

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        """Names and values of `to_dict`: for ``dict(answer)``, which web frameworks use."""
        return iter(self.to_dict().items())

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> Any:
        """How pydantic, and so FastAPI, writes a result that an endpoint returns: as `to_dict`."""
        from pydantic_core import core_schema

        return core_schema.is_instance_schema(
            cls,
            serialization=core_schema.plain_serializer_function_ser_schema(
                cls.to_dict, return_schema=core_schema.dict_schema()
            ),
        )


@documented
class AnswerStats(Result, frozen=True, kw_only=True):
    """The statistics of one answer. Names ending in ``_s`` are seconds, in ``_ms`` milliseconds; null where nothing was
    measured.

    ``acceptance_rate`` is accepted / (accepted + rejected), over the drafted tokens that were tested. Tokens after a
    rejection are not tested. ``mean_accepted_length`` is accepted tokens per rejection, across windows. ``windows``
    holds the number of drafted tokens of each verified window.
    """

    method: str
    target_backend: str
    """The plug-in that ran the target."""
    draft_backend: str | None
    """The plug-in that ran the draft; null for an answer without one."""
    total_s: float
    """From the call to the last token: the sum of start-up, waiting, reading the video, prefill and decoding."""
    startup_s: float
    """Starting the workers and loading the models, where the engine was not open yet."""
    waiting_s: float
    """The wait for a place in the engine (`EngineConfig.max_sessions`), and for a target that is restarted."""
    video_s: float
    """Reading, sampling and resizing the frames."""
    prefill_s: float
    """From opening the session to the target's first logits."""
    decode_s: float
    """From the first logits to the last token."""
    time_to_first_token_s: float
    new_tokens: int
    tokens_per_second: float | None
    """``new_tokens`` / ``decode_s``."""
    target_passes: int
    target_pass_ms: float | None
    """Median time of a pass in decoding."""
    target_passes_ms: tuple[tuple[int, float], ...]
    """For each pass in decoding: the number of its input tokens, and its time."""
    target_idle_ms: float | None
    """Median time between two passes of the target."""
    coordination_ms: tuple[float, ...]
    """For each pass of the target but the first: the time since the previous pass, without the draft's computing time.

    That is the time in which the draft computed the input of this pass, or stopped work that a rollback made useless.
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
    prepared_windows: int
    """Windows that the draft prepared for likely verdicts, beside those that it expected to be accepted."""
    prepared_batches: int
    """In so many messages."""
    outcome_hits: int
    """Rejections after which the target went on at once, because a window was prepared for them."""
    outcome_late_hits: int
    """The same, but the prepared window arrived after the rejection."""
    outcome_misses: int
    """Rejections while outcomes were being prepared for which none was ready. One in work still shortens the wait."""
    hit_rate: float | None
    """Hits and late hits / all rejections while outcomes were being prepared."""
    hit_coordination_ms: tuple[float, ...]
    """For each hit: the time until the next pass of the target."""
    rests: int
    """How often the target wrote alone for a while because drafting did not pay."""
    origins: str
    """Who wrote each token: ``d`` the draft (accepted), ``c`` the target in place of a rejected draft token, ``t`` the
    target alone.
    """
    windows: tuple[int, ...]
    accepted_lengths: tuple[int, ...]
    """For each of ``windows``: how many of its tokens were accepted."""
    dropped_windows: int
    prompt_tokens: int
    video_tokens: int
    cached_tokens: int
    """Tokens of the prompt whose rows the target had kept from an earlier answer."""
    kept_video_tokens: int
    prune: str
    target_prefill_ms: float | None
    """The target's own work for the prefill, without the passes of other answers between its pieces."""
    draft_prefill_ms: float | None
    frame_indices: tuple[int, ...]
    """Of all videos and images of the prompt, one after the other."""
    source_frames: int
    """Of all of them together."""
    source_fps: float | None
    """None if it is unknown, and for several videos."""
    seed: int | None
    coupling: str
    ignored_options: tuple[str, ...]
    """``name=value`` of the target's settings for generation that would change its tokens and are not applied."""
    draft_lost: str
    """Why the target wrote some or all of this answer without a draft; empty if the draft took part throughout."""
    draft_rejoins: int
    """How often a restarted draft joined this answer."""
    target_recoveries: int
    """How often a restarted target continued this answer."""

    def __str__(self) -> str:
        """One line: the most asked-for figures."""
        parts = [f"{self.new_tokens} tokens in {self.total_s:.2f} s"]
        if self.tokens_per_second is not None:
            parts.append(f"{self.tokens_per_second:.0f} a second")
        parts.append(f"method {self.method}")
        if self.acceptance_rate is not None:
            parts.append(f"{self.acceptance_rate:.0%} of the drafts accepted")
        return ", ".join(parts)

    def __repr__(self) -> str:
        return f"<AnswerStats: {self}>"


class Chunk(Result, frozen=True):
    """A piece of an answer: final text, and the token ids that were committed since the last chunk.

    Text may come later than its tokens: an incomplete character or a possible stop string is held back.
    """

    text: str
    tokens: tuple[int, ...]


class Answer(Result, frozen=True, kw_only=True):
    """An answer. ``str()`` of it is its text, and `to_dict` is for JSON. A notebook shows the text and one line of
    figures.
    """

    text: str
    tokens: tuple[int, ...]
    finish_reason: FinishReason
    stats: AnswerStats

    def __str__(self) -> str:
        return self.text

    def __repr__(self) -> str:
        return f"<Answer {shown(self.text)}: {self.finish_reason}, {self.stats}>"

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """What IPython and notebooks show."""
        printer.text(f"{self.text}\n\n({self.finish_reason}, {self.stats})")


def _rounded(value: Any) -> Any:
    match value:
        case float():
            return round(value, DIGITS)
        case dict():
            return {name: _rounded(part) for name, part in value.items()}
        case list() | tuple():
            return [_rounded(part) for part in value]
    return value


def median_or_none(values: list[float]) -> float | None:
    return median(values) if values else None


def ratio_or_none(part: float, whole: float) -> float | None:
    return part / whole if whole else None
