"""Ray Serve: replicas of the application on many machines, one engine in each (``pip install 'pvlm[ray]'``).

``serve run pvlm.serving.ray:app`` serves the bundled pair, and ``serve run pvlm.serving.ray:build_app target=MODEL``
another one. A configuration file of Ray Serve names `build_app` and its ``args``.
"""

from __future__ import annotations

import os
import random
import re
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, get_type_hints

import msgspec

from pvlm.config import EngineConfig, engine_config
from pvlm.engine import Engine
from pvlm.errors import ConfigError, TargetLost
from pvlm.log import configure_logging
from pvlm.serving.configuration import ServerConfig
from pvlm.settings.validation import build

try:
    from prometheus_client import CollectorRegistry
    from ray import serve
    from ray.serve.experimental.consistent_hash_router import ConsistentHashRouter
    from ray.serve.request_router import PendingRequest, RunningReplica
    from starlette.applications import Starlette

    from pvlm.serving.application import create_app
    from pvlm.telemetry.prometheus import PrometheusMetrics
except ImportError as error:
    raise ImportError(f"pvlm.serving.ray needs {error.name}: pip install 'pvlm[ray]'") from error

NAME = "pvlm"
"""The deployment's name, for a configuration file of Ray Serve."""
RETRY_AFTER_S = 5
DRAIN_TIMEOUT_S = 30.0
UNHEALTHY = ("lost", "away")
"""States of a target for which a replica is replaced (see `ActorHealth`)."""


class SessionRouter(ConsistentHashRouter):  # type: ignore[misc]
    """Requests with the same ``X-Session-Id`` meet the same replica, as long as it has room and the replicas are the
    same. Others meet the less busy of two replicas.
    """

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """Candidates in the order in which they are tried."""
        if pending_request is not None and not pending_request.metadata.session_id and candidate_replicas:
            pending_request.routing_context.should_backoff = True  # where both are full, not at once again
            return [random.sample(candidate_replicas, min(2, len(candidate_replicas)))]
        found: list[list[RunningReplica]] = await super().choose_replicas(candidate_replicas, pending_request)
        return found


@serve.ingress()
class Replica:
    """One engine, and the application around it."""

    def __init__(self, engine: EngineConfig, server: ServerConfig) -> None:
        configure_logging("info", json=True)
        registry = CollectorRegistry()
        self._engine = Engine(engine, metrics=PrometheusMetrics(registry))
        self._app = create_app(self._engine, server, registry=registry)

    def __serve_build_asgi_app__(self) -> Starlette:
        """The application, which opens the engine when it starts."""
        return self._app

    async def check_health(self) -> None:
        """Ray Serve replaces the replica when this fails. Raises TargetLost."""
        found = (await self._engine.health(timeout_s=1.0)).get("target")
        if found is None or found.state in UNHEALTHY:
            raise TargetLost("the engine has ended" if found is None else f"the target is {found.state}")


def build_app(args: Mapping[str, Any]) -> serve.Application:
    """The application for Ray Serve.

    ``args``: settings of `EngineConfig` and `ServerConfig`, and in ``deployment`` options of ``serve.deployment``, for
    instance ``{"autoscaling_config": {"max_replicas": 8}}``. Text stands for a number, as on a command line.

    A replica reserves the GPUs that ``device`` and ``draft_device`` name, and a core for each thread of a model on a
    CPU: 1 for each unless ``threads`` and ``draft_threads`` say more. Raises ConfigError.
    """
    engine, server, options = settings_of(args)
    return serve.deployment(Replica).options(**deployment_options(engine, options)).bind(engine, server)


def settings_of(args: Mapping[str, Any]) -> tuple[EngineConfig, ServerConfig, dict[str, Any]]:
    """The engine's settings, the server's, and the options of the deployment. Keys of callers that are not given are
    those of the variable ``PVLM_API_KEY``, as for ``pvlm serve``. Raises ConfigError.
    """
    given = dict(args)
    options = given.pop("deployment", {})
    given.setdefault("api_keys", tuple(os.environ.get("PVLM_API_KEY", "").split()))
    of_server = {name: given.pop(name) for name in ServerConfig.__struct_fields__ if name in given}
    server = build(ServerConfig, _typed(ServerConfig, of_server), "setting", ConfigError)
    return engine_config({**DEFAULTS, **_typed(EngineConfig, given)}), server, options


DEFAULTS = {"threads": 1, "draft_threads": 1, "affinity": (), "draft_affinity": ()}
"""A replica has the cores that Ray gives it: several on a machine must not choose the same."""


def _typed(kind: type[msgspec.Struct], given: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with text converted to the type of its field, where it can be; other errors are found later."""
    hints, typed = get_type_hints(kind, include_extras=True), dict(given)
    for name, value in given.items():
        if isinstance(value, str) and name in hints:
            with suppress(msgspec.ValidationError):
                typed[name] = msgspec.convert(value, hints[name], strict=False)
    return typed


def deployment_options(config: EngineConfig, options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of ``serve.deployment``: those that follow from an engine's settings, replaced by ``options``."""
    answers = config.max_sessions + config.max_waiting
    found: dict[str, Any] = {
        "name": NAME,
        "ray_actor_options": _resources(config),
        "max_ongoing_requests": answers,
        "max_queued_requests": max(1, config.max_waiting),
        "backpressure_config": {"status_code": 429, "retry_after_s": RETRY_AFTER_S},
        "graceful_shutdown_timeout_s": DRAIN_TIMEOUT_S,
        "request_router_config": {"request_router_class": f"{__name__}:{SessionRouter.__name__}"},
    }
    if "num_replicas" not in options:
        found["autoscaling_config"] = {"max_replicas": 4, "target_ongoing_requests": config.max_sessions}
    for name, value in options.items():
        merged = isinstance(value, Mapping) and isinstance(found.get(name), Mapping)
        found[name] = {**found[name], **value} if merged else value
    return found


def _resources(config: EngineConfig) -> dict[str, float]:
    """The cores and GPUs of a replica. GPUs are numbered from 0 within it."""
    used = {"target": (config.device, config.threads)}
    if config.draft is not None:
        used["draft"] = (config.draft_device or config.device, config.draft_threads)
    cores = sum(threads or 1 for device, threads in used.values() if device == "cpu")
    numbers = [int(number or 0) for device, _ in used.values() for number in re.findall(r"cuda(?::(\d+))?", device)]
    return {"num_cpus": max(1, cores), "num_gpus": max(numbers, default=-1) + 1}


app = build_app({})
"""The bundled pair."""
