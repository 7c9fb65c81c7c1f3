"""The code of an application that watches an engine, and the one place that calls it.

An error of an observer reaches neither the engine nor an answer. It is counted in `pvlm.telemetry.metrics.FAULTS`, and
logged once for each kind of observer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial
from inspect import iscoroutinefunction
from typing import Literal

from pvlm.errors import ConfigError, OptionError
from pvlm.log import log
from pvlm.telemetry.metrics import FAULTS, Metric, Metrics
from pvlm.telemetry.recorder import GuardedRecorder, Recorder

OnProgress = Callable[[str, float], None]
"""Called with the name of a step (``"load target"``, ``"load draft"``, ``"prefill"``) and its progress, 0 to 1."""

Observer = Literal["on_progress", "metrics", "trace", "log"]


class Observers:
    """What watches one engine. `on_progress`, `metrics` and what `trace` returns may be called without care."""

    def __init__(self, on_progress: OnProgress | None = None, metrics: Metrics | None = None) -> None:
        """Raises ConfigError for an observer without the methods that it needs."""
        if on_progress is not None and (not callable(on_progress) or iscoroutinefunction(on_progress)):
            raise ConfigError(f"on_progress is a {_kind(on_progress)}: give a function (not async) of two arguments")
        if metrics is not None and (lacking := _lacking(metrics, "add", "observe")):
            raise ConfigError(f"metrics is a {_kind(metrics)}, which has no {lacking}: see pvlm.telemetry.metrics")
        self.failures: Counter[Observer] = Counter()
        self.metrics = None if metrics is None else GuardedMetrics(self, metrics)
        self._on_progress = on_progress

    def on_progress(self, what: str, fraction: float) -> None:
        """As `OnProgress`."""
        if self._on_progress is not None:
            self.call("on_progress", self._on_progress, what, fraction)

    def trace(self, recorder: Recorder | None) -> Recorder | None:
        """The recorder, guarded. Raises OptionError for an object that is no recorder."""
        if recorder is None:
            return None
        if lacking := _lacking(recorder, "began", "handled", "ended"):
            raise OptionError(f"trace is a {_kind(recorder)}, which has no {lacking}: give a pvlm.trace.Trace()")
        return GuardedRecorder(partial(self.call, "trace"), recorder)

    def call(self, observer: Observer, function: Callable[..., object], *arguments: object, **labels: str) -> None:
        """Call an observer; an error of it ends here."""
        try:
            function(*arguments, **labels)
        except Exception as error:
            self._failed(observer, error)
        if lost := log.take_lost():
            self.count("log", lost)

    def count(self, observer: Observer, times: int = 1) -> None:
        """Count errors of an observer."""
        self.failures[observer] += times
        if self.metrics is not None and observer != "metrics":
            self.metrics.add(FAULTS, times, kind="observer_failed", role="")

    def _failed(self, observer: Observer, error: Exception) -> None:
        first = not self.failures[observer]
        self.count(observer)
        if first:
            log.warning("observer_failed", observer=observer, error=type(error).__name__, reason=str(error))


class GuardedMetrics:
    """A `Metrics` whose errors end here."""

    def __init__(self, observers: Observers, metrics: Metrics) -> None:
        self._call = observers.call
        self._metrics = metrics

    def add(self, metric: Metric, amount: float = 1.0, **labels: str) -> None:
        self._call("metrics", self._metrics.add, metric, amount, **labels)

    def observe(self, metric: Metric, value: float, **labels: str) -> None:
        self._call("metrics", self._metrics.observe, metric, value, **labels)


def _lacking(found: object, *methods: str) -> str:
    return ", ".join(name for name in methods if not callable(getattr(found, name, None)))


def _kind(found: object) -> str:
    return "coroutine function" if iscoroutinefunction(found) else type(found).__name__
