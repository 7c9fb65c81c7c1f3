"""What an engine tells whoever operates it: events for the log, and `pvlm.telemetry.metrics`."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import structlog

from pvlm.coordination.events import Event
from pvlm.coordination.statistics import Counts
from pvlm.telemetry.metrics import (
    ACCEPTED_TOKENS,
    ACCEPTED_TOKENS_PER_POSITION,
    DRAFT_TOKENS,
    DRAFTS,
    FAULTS,
    GENERATION_TOKENS,
    INTER_TOKEN_LATENCY,
    REJECTED_TOKENS,
    TIME_TO_FIRST_TOKEN,
    Metric,
    Metrics,
)
from pvlm_protocols.backend import Role
from pvlm_protocols.messages import Verdict

Fault = Literal[
    "worker_lost",
    "worker_restart_failed",
    "worker_given_up",
    "connection_refused",
    "session_interrupted",
    "session_failed",
    "session_not_freed",
    "message_dropped",
    "video_refused",
    "engine_busy",
    "answer_failed",
]
"""Names of events of level warning and above, and the kinds of `pvlm.telemetry.metrics.FAULTS`.

See docs/reference/operations.md.
"""

log = structlog.get_logger()


class Reporter:
    """Of one engine. Without ``metrics`` only the log is told."""

    def __init__(self, metrics: Metrics | None = None) -> None:
        self.metrics = metrics

    def fault(self, kind: Fault, *, role: Role | None = None, count: int | None = None, **details: Any) -> None:
        """Log it and count it (``count`` at once). ``details`` are for the log; those that are None are left out."""
        tell = log.error if kind == "worker_given_up" else log.warning
        details = {"role": role, "count": count, **details}
        tell(kind, **{name: value for name, value in details.items() if value is not None})
        self.add(FAULTS, 1 if count is None else count, kind=kind, role=role or "")

    def add(self, metric: Metric, amount: float = 1.0, **labels: str) -> None:
        if self.metrics is not None:
            self.metrics.add(metric, amount, **labels)

    def observe(self, metric: Metric, value: float, **labels: str) -> None:
        if self.metrics is not None:
            self.metrics.observe(metric, value, **labels)

    @contextmanager
    def during(self, gauge: Metric) -> Iterator[None]:
        """One more as long as the context lasts."""
        self.add(gauge)
        try:
            yield
        finally:
            self.add(gauge, -1)


TELL_EVERY_S = 1.0


class AnswerReport:
    """Tells `Metrics` of one answer while it is written: once a second, for telling them of each pass would take tens
    of microseconds right behind it.
    """

    def __init__(self, metrics: Metrics, counts: Counts, started_s: float) -> None:
        """``started_s``: when the answer was asked for, by ``time.perf_counter``."""
        self._metrics = metrics
        self._counts = counts
        self._told = (0, 0, 0)
        self._told_s = self._last_token_s = started_s
        self._tokens = 0
        self._gaps: list[tuple[int, float]] = []
        """Tokens that have come together, and how long after those before; not told yet, like those below."""
        self._drafts = 0
        self._accepted_by_position: list[int] = []
        self._verified = 0

    def tokens(self, count: int) -> None:
        """So many tokens have come together."""
        now_s = time.perf_counter()
        if self._tokens == 0:
            self._metrics.observe(TIME_TO_FIRST_TOKEN, now_s - self._last_token_s)
            self._metrics.add(GENERATION_TOKENS, count)
        else:
            self._gaps.append((count, now_s - self._last_token_s))
        self._tokens += count
        self._last_token_s = now_s

    def handled(self, event: Event) -> None:
        """The coordinator has taken in an event."""
        match event:
            case Verdict():
                verified, self._verified = self._verified, len(self._counts.windows)
                if self._verified > verified:  # it was not dropped
                    self._count_positions(event)
        if time.perf_counter() - self._told_s >= TELL_EVERY_S:
            self.tell()

    def _count_positions(self, verdict: Verdict) -> None:
        self._drafts += 1
        by_position = self._accepted_by_position
        by_position += [0] * (verdict.accepted - len(by_position))
        for position in range(verdict.accepted):
            by_position[position] += 1

    def tell(self) -> None:
        """What has come since it was told last."""
        metrics, counts = self._metrics, self._counts
        now = (counts.drafted_tokens, counts.accepted_tokens, counts.rejected_tokens)
        grown = [count - told for count, told in zip(now, self._told, strict=True)]
        by_position = self._accepted_by_position
        for metric, count in zip((DRAFT_TOKENS, ACCEPTED_TOKENS, REJECTED_TOKENS), grown, strict=True):
            metrics.add(metric, count)
        metrics.add(DRAFTS, self._drafts)
        for position, count in enumerate(by_position):
            metrics.add(ACCEPTED_TOKENS_PER_POSITION, count, position=str(position))
        for tokens, gap_s in self._gaps:
            metrics.add(GENERATION_TOKENS, tokens)
            for _ in range(tokens):
                metrics.observe(INTER_TOKEN_LATENCY, gap_s / tokens)
        self._told, self._told_s = now, time.perf_counter()
        self._drafts = 0
        by_position.clear()
        self._gaps.clear()
