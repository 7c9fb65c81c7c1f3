"""What an engine counts and times for its operators, and the interface that receives it.

Names and meanings are those of vLLM's metrics, where it has them, with ``pvlm:`` in front.
`pvlm.telemetry.prometheus` exports them to Prometheus.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol


@dataclass(frozen=True, eq=False)
class Metric:
    """``counter``: only grows; ``gauge``: grows and shrinks; ``histogram``: observed values, in seconds, by upper
    bounds (``buckets``). ``labels``: what its values are told apart by.
    """

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    description: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()


class Metrics(Protocol):
    """Receives what an engine counts and times, as it happens: ``Engine.create(..., metrics=...)``.

    Called on the engine's event loop; must return at once. An error is counted and logged once, and does no harm.
    ``labels`` has a value for each of ``metric.labels``. One object may be given to many engines, for gauges are told
    by how much they change.
    """

    def add(self, metric: Metric, amount: float = 1.0, **labels: str) -> None:
        """A counter has grown, or a gauge has changed (``amount`` may be negative then)."""
        ...

    def observe(self, metric: Metric, value: float, **labels: str) -> None:
        """A value for a histogram."""
        ...


# ---- speculative decoding -----------------------------------------------------------------------------------------

DRAFTS = Metric("pvlm:spec_decode_num_drafts", "counter", "How often drafted tokens were verified together.")
DRAFT_TOKENS = Metric(
    "pvlm:spec_decode_num_draft_tokens", "counter", "Tokens that the draft has written, whether verified or not."
)
ACCEPTED_TOKENS = Metric("pvlm:spec_decode_num_accepted_tokens", "counter", "Drafted tokens that were accepted.")
ACCEPTED_TOKENS_PER_POSITION = Metric(
    "pvlm:spec_decode_num_accepted_tokens_per_pos",
    "counter",
    "Drafted tokens that were accepted, by their position among those verified together (from 0).",
    labels=("position",),
)
REJECTED_TOKENS = Metric(
    "pvlm:spec_decode_num_rejected_tokens",
    "counter",
    "Drafted tokens that were rejected; those after one were not tested and are not counted.",
)
OUTCOME_HITS = Metric(
    "pvlm:outcome_hits", "counter", "Rejections for which the draft had prepared the target's next window."
)
OUTCOME_MISSES = Metric(
    "pvlm:outcome_misses", "counter", "Rejections without a prepared window, while the draft was preparing some."
)

# ---- answers ------------------------------------------------------------------------------------------------------

REQUESTS_RUNNING = Metric("pvlm:num_requests_running", "gauge", "Answers that are being written, their video read.")
REQUESTS_WAITING = Metric("pvlm:num_requests_waiting", "gauge", "Answers that wait for their turn (max_sessions).")
REQUESTS = Metric(
    "pvlm:requests",
    "counter",
    "Answers by how they ended: stop, length, left (by the reader of a stream), cancelled, or the name of an error.",
    labels=("outcome",),
)
GENERATION_TOKENS = Metric("pvlm:generation_tokens", "counter", "Tokens of answers that were given out.")
TIME_TO_FIRST_TOKEN = Metric(
    "pvlm:time_to_first_token_seconds",
    "histogram",
    "From the call to the first token, waiting and reading the video included.",
    buckets=(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 320.0),
)
INTER_TOKEN_LATENCY = Metric(
    "pvlm:inter_token_latency_seconds",
    "histogram",
    "For each token after the first: the time since the tokens before, shared among those that came together.",
    buckets=(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1.0, 2.5, 5.0),
)
REQUEST_LATENCY = Metric(
    "pvlm:e2e_request_latency_seconds",
    "histogram",
    "From the call to the last token, for answers that were completed.",
    buckets=(0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 320.0, 640.0, 1280.0),
)

# ---- what is kept between answers ---------------------------------------------------------------------------------

PREFIX_QUERIES = Metric(
    "pvlm:prefix_cache_queries", "counter", "Tokens of prompts that a model was asked about, by role.", labels=("role",)
)
PREFIX_HITS = Metric(
    "pvlm:prefix_cache_hits", "counter", "Those of them whose rows the model had kept, by role.", labels=("role",)
)
PREFIX_EVICTIONS = Metric(
    "pvlm:prefix_cache_evictions", "counter", "Kept prefixes that made room for others, by role.", labels=("role",)
)
PREFIXES = Metric("pvlm:prefix_cache_prefixes", "gauge", "Prefixes that a model keeps, by role.", labels=("role",))
PREFIX_BYTES = Metric("pvlm:prefix_cache_bytes", "gauge", "Memory of these prefixes, by role.", labels=("role",))
VIDEOS = Metric(
    "pvlm:videos",
    "counter",
    "Videos and images of prompts by where their frames came from: read, or kept from an earlier question.",
    labels=("source",),
)

# ---- workers and faults -------------------------------------------------------------------------------------------

WORKERS_RUNNING = Metric("pvlm:workers_running", "gauge", "Workers that are there, by role.", labels=("role",))
WORKER_RESTARTS = Metric(
    "pvlm:worker_restarts", "counter", "Workers that were started again, by role.", labels=("role",)
)
FAULTS = Metric(
    "pvlm:faults",
    "counter",
    "Faults by kind, which is the name of the event in the log; role is empty where it is no worker's.",
    labels=("kind", "role"),
)

METRICS: tuple[Metric, ...] = (
    DRAFTS,
    DRAFT_TOKENS,
    ACCEPTED_TOKENS,
    ACCEPTED_TOKENS_PER_POSITION,
    REJECTED_TOKENS,
    OUTCOME_HITS,
    OUTCOME_MISSES,
    REQUESTS_RUNNING,
    REQUESTS_WAITING,
    REQUESTS,
    GENERATION_TOKENS,
    TIME_TO_FIRST_TOKEN,
    INTER_TOKEN_LATENCY,
    REQUEST_LATENCY,
    PREFIX_QUERIES,
    PREFIX_HITS,
    PREFIX_EVICTIONS,
    PREFIXES,
    PREFIX_BYTES,
    VIDEOS,
    WORKERS_RUNNING,
    WORKER_RESTARTS,
    FAULTS,
)
"""All of them."""
