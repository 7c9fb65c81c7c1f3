"""A chat completion as it is given: chunks and answers in, OpenAI's objects and events out. No I/O."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from pvlm.results import DIGITS, Answer, AnswerStats, ratio_or_none

DONE = b"data: [DONE]\n\n"
"""The last event of a stream."""


@dataclass(frozen=True)
class Reply:
    """The reply to one request. ``created``: in seconds of Unix time."""

    id: str
    model: str
    created: int
    include_usage: bool = False
    """A stream ends with a chunk that has the usage."""
    speculation: Literal["none", "summary", "detailed"] = "none"
    times: bool = False

    def whole(self, answer: Answer) -> dict[str, Any]:
        """The object for a request without ``stream``."""
        message = {"role": "assistant", "content": answer.text, "refusal": None}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": answer.finish_reason}
        return {**self._object("chat.completion", [choice]), "usage": usage(answer.stats), **self._metrics(answer)}

    def opening(self) -> dict[str, Any]:
        """The first chunk of a stream."""
        return self._chunk({"role": "assistant", "content": ""})

    def piece(self, text: str) -> dict[str, Any]:
        """A chunk with text."""
        return self._chunk({"content": text})

    def closing(self, answer: Answer) -> list[dict[str, Any]]:
        """The last chunks of a stream. Figures are in the last of them."""
        chunks = [self._chunk({}, answer.finish_reason)]
        if self.include_usage:
            chunks.append({**self._object("chat.completion.chunk", []), "usage": usage(answer.stats)})
        chunks[-1] |= self._metrics(answer)
        return chunks

    def _chunk(self, delta: dict[str, Any], reason: str | None = None) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
        return self._object("chat.completion.chunk", [choice]) | ({"usage": None} if self.include_usage else {})

    def _object(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model, "choices": choices}

    def _metrics(self, answer: Answer) -> dict[str, Any]:
        metrics: dict[str, Any] = times(answer.stats) if self.times else {}
        if self.speculation != "none":
            metrics["speculative_decoding"] = speculation(answer.stats, detailed=self.speculation == "detailed")
        return {"metrics": metrics} if metrics else {}


def usage(stats: AnswerStats) -> dict[str, Any]:
    """OpenAI's count of tokens; those of the video are among the prompt's."""
    return {
        "prompt_tokens": stats.prompt_tokens,
        "completion_tokens": stats.new_tokens,
        "total_tokens": stats.prompt_tokens + stats.new_tokens,
        "prompt_tokens_details": {"cached_tokens": stats.cached_tokens},
    }


def speculation(stats: AnswerStats, *, detailed: bool) -> dict[str, Any]:
    """vLLM's figures of speculation. A step is a window that the target verified."""
    steps, drafted, accepted = len(stats.windows), sum(stats.windows), sum(stats.accepted_lengths)
    most = max(stats.windows, default=0)
    histogram = Counter(stats.accepted_lengths)
    found: dict[str, Any] = {
        "mean_acceptance_length": _rounded(1 + accepted / steps) if steps else None,
        "draft_acceptance_rate": _rounded(ratio_or_none(accepted, drafted)),
        "acceptance_histogram": [histogram[length] for length in range(most + 1)] if steps else [],
        "num_spec_steps": steps,
        "num_accepted_draft_tokens": accepted,
        "num_draft_tokens": drafted,
        "num_spec_tokens": most,
    }
    if detailed:
        found |= {"per_step_accepted": list(stats.accepted_lengths), "per_step_drafted": list(stats.windows)}
    return found


def times(stats: AnswerStats) -> dict[str, Any]:
    """vLLM's times of a request, in ms."""
    writing_s = stats.total_s - stats.time_to_first_token_s
    return {
        "time_to_first_token_ms": _rounded(1000 * stats.time_to_first_token_s),
        "generation_time_ms": _rounded(1000 * stats.decode_s),
        "queue_time_ms": _rounded(1000 * stats.waiting_s),
        "mean_itl_ms": _rounded(ratio_or_none(1000 * writing_s, stats.new_tokens - 1)),
        "tokens_per_second": _rounded(stats.tokens_per_second),
    }


def event(data: dict[str, Any]) -> bytes:
    """A server-sent event."""
    return b"data: %b\n\n" % msgspec.json.encode(data)


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, DIGITS)
