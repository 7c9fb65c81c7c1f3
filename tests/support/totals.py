"""The smallest metrics: totals by name, and by the labels' values after it."""

from __future__ import annotations

from pvlm.telemetry.metrics import Metric


class Totals:
    """A `pvlm.telemetry.metrics.Metrics`. Of histograms it counts the values."""

    def __init__(self) -> None:
        self.found: dict[str, float] = {}

    def add(self, metric: Metric, amount: float = 1.0, **labels: str) -> None:
        assert tuple(labels) == metric.labels
        assert metric.kind == "gauge" or (metric.kind == "counter" and amount >= 0)
        name = " ".join([metric.name, *labels.values()])
        self.found[name] = self.found.get(name, 0) + amount

    def observe(self, metric: Metric, value: float, **labels: str) -> None:
        assert tuple(labels) == metric.labels
        assert metric.kind == "histogram"
        assert value >= 0
        self.found[metric.name] = self.found.get(metric.name, 0) + 1
