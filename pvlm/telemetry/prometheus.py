"""`pvlm.telemetry.metrics` for Prometheus, through ``prometheus-client`` (``pip install 'pvlm[metrics]'``)."""

from __future__ import annotations

from pvlm.errors import ConfigError
from pvlm.telemetry.metrics import METRICS, Metric

try:
    from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram
except ImportError as error:
    raise ImportError("pvlm.telemetry.prometheus needs prometheus-client: pip install 'pvlm[metrics]'") from error


class PrometheusMetrics:
    """A `pvlm.telemetry.metrics.Metrics` over collectors in a registry of prometheus-client::

        metrics = PrometheusMetrics()
        prometheus_client.start_http_server(9400, addr="127.0.0.1")
        async with Engine.create(metrics=metrics) as engine:
            ...

    prometheus-client ends the names of counters in ``_total``. Engines that share one of these are counted together;
    to tell them apart, give each its own, with a registry of its own.
    """

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        """Raises ConfigError if the registry has these metrics already."""
        try:
            self._collectors = {metric: _collector(metric, registry) for metric in METRICS}
        except ValueError as error:
            raise ConfigError(
                f"this registry has pvlm's metrics already ({error}): give the same PrometheusMetrics to every engine, "
                "or make each with a registry of its own"
            ) from None
        self._of_labels: dict[tuple[Metric, tuple[str, ...]], Counter | Gauge | Histogram] = {}

    def add(self, metric: Metric, amount: float = 1.0, **labels: str) -> None:
        """As `pvlm.telemetry.metrics.Metrics.add`."""
        collector = self._with_labels(metric, labels)
        assert not isinstance(collector, Histogram)
        collector.inc(amount)

    def observe(self, metric: Metric, value: float, **labels: str) -> None:
        """As `pvlm.telemetry.metrics.Metrics.observe`."""
        collector = self._with_labels(metric, labels)
        assert isinstance(collector, Histogram)
        collector.observe(value)

    def _with_labels(self, metric: Metric, labels: dict[str, str]) -> Counter | Gauge | Histogram:
        """Kept, for prometheus-client takes 2 µs to find it."""
        if not labels:
            return self._collectors[metric]
        key = metric, tuple(labels.values())
        if (found := self._of_labels.get(key)) is None:
            found = self._of_labels[key] = self._collectors[metric].labels(**labels)
        return found


def _collector(metric: Metric, registry: CollectorRegistry) -> Counter | Gauge | Histogram:
    match metric.kind:
        case "counter":
            return Counter(metric.name, metric.description, metric.labels, registry=registry)
        case "gauge":
            return Gauge(metric.name, metric.description, metric.labels, registry=registry)
        case "histogram":
            return Histogram(metric.name, metric.description, metric.labels, registry=registry, buckets=metric.buckets)
