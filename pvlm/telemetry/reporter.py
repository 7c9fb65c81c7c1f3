"""What an engine reports to its operators: events for the log, and `pvlm.telemetry.metrics`."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

from pvlm.coordination.events import Command, Judged, WindowsPrepared, WindowTaken
from pvlm.log import log
from pvlm.telemetry.metrics import (
    ACCEPTED_TOKENS,
    ACCEPTED_TOKENS_PER_POSITION,
    DRAFT_TOKENS,
    DRAFTS,
    FAULTS,
    GENERATION_TOKENS,
    INTER_TOKEN_LATENCY,
    OUTCOME_HITS,
    OUTCOME_MISSES,
    REJECTED_TOKENS,
    TIME_TO_FIRST_TOKEN,
    Metric,
    Metrics,
)
from pvlm_protocols.backend import Role

Fault = Literal[
    "worker_lost",
    "worker_restart_failed",
    "worker_given_up",
    "connection_refused",
    "session_interrupted",
    "session_failed",
    "message_dropped",
    "video_refused",
    "engine_busy",
    "answer_failed",
    "observer_failed",
]
"""Names of events of level warning and above, and the kinds of `pvlm.telemetry.metrics.FAULTS`.

See docs/reference/operations.md.
"""


class Reporter:
    """Reports for one engine. Without ``metrics`` it only writes the log."""

    def __init__(self, metrics: Metrics | None = None) -> None:
        """``metrics`` must raise nothing: give those of `pvlm.telemetry.observers`."""
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
        """Count one more in a gauge while the context lasts."""
        self.add(gauge)
        try:
            yield
        finally:
            self.add(gauge, -1)


TELL_EVERY_S = 1.0
"""How often the figures of an answer are reported while it is written."""


class AnswerReport:
    """Reports one answer to `Metrics` while it is written. It does so once a second, because a report after each pass
    would take tens of microseconds of the loop's time.
    """

    def __init__(self, metrics: Metrics, started_s: float) -> None:
        """``started_s``: when the answer was asked for, by ``time.perf_counter``."""
        self._metrics = metrics
        self._reported_s = self._last_token_s = started_s
        self._tokens = 0
        self._gaps: list[tuple[int, float]] = []
        """Tokens that have come together, and the time since those before; not reported yet, like the counts below."""
        self._counted: Counter[Metric] = Counter()
        self._accepted_by_position: list[int] = []

    def tokens(self, count: int) -> None:
        """``count`` tokens have come together."""
        now_s = time.perf_counter()
        if self._tokens == 0:
            self._metrics.observe(TIME_TO_FIRST_TOKEN, now_s - self._last_token_s)
            self._metrics.add(GENERATION_TOKENS, count)
        else:
            self._gaps.append((count, now_s - self._last_token_s))
        self._tokens += count
        self._last_token_s = now_s

    def handled(self, commands: Sequence[Command]) -> None:
        """The coordinator has taken an event and given these commands."""
        for command in commands:
            match command:
                case WindowTaken(window):
                    self._counted[DRAFT_TOKENS] += len(window.tokens)
                case WindowsPrepared(prepared):
                    self._counted[DRAFT_TOKENS] += sum(len(outcome.tokens) for outcome in prepared.outcomes)
                case Judged(verdict, _, found) if verdict.window:
                    self._counted[OUTCOME_HITS] += found in ("hit", "late")
                    self._counted[OUTCOME_MISSES] += found == "miss"
                    self._counted[DRAFTS] += 1
                    self._counted[ACCEPTED_TOKENS] += verdict.accepted
                    self._counted[REJECTED_TOKENS] += verdict.rejected
                    by_position = self._accepted_by_position
                    by_position += [0] * (verdict.accepted - len(by_position))
                    for position in range(verdict.accepted):
                        by_position[position] += 1
        if time.perf_counter() - self._reported_s >= TELL_EVERY_S:
            self.tell()

    def tell(self) -> None:
        """Report what has come since the last report."""
        metrics = self._metrics
        for metric in (DRAFTS, DRAFT_TOKENS, ACCEPTED_TOKENS, REJECTED_TOKENS, OUTCOME_HITS, OUTCOME_MISSES):
            metrics.add(metric, self._counted[metric])
        for position, count in enumerate(self._accepted_by_position):
            metrics.add(ACCEPTED_TOKENS_PER_POSITION, count, position=str(position))
        for tokens, gap_s in self._gaps:
            metrics.add(GENERATION_TOKENS, tokens)
            for _ in range(tokens):
                metrics.observe(INTER_TOKEN_LATENCY, gap_s / tokens)
        self._counted.clear()
        self._accepted_by_position.clear()
        self._gaps.clear()
        self._reported_s = time.perf_counter()
