"""The application: the routes around one engine. Embed it, or run it by ``pvlm serve``."""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pvlm
from pvlm.engine import Engine, EngineState
from pvlm.errors import PvlmError, first_of
from pvlm.log import log
from pvlm.redaction import shown
from pvlm.serving.configuration import ServerConfig
from pvlm.serving.refusals import Refusal, refusal_of
from pvlm.serving.workload import Workload

try:
    from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, CollectorRegistry, generate_latest
    from starlette.applications import Starlette
    from starlette.exceptions import HTTPException
    from starlette.middleware import Middleware
    from starlette.requests import ClientDisconnect, Request
    from starlette.responses import JSONResponse, Response
    from starlette.routing import Mount, Route

    from pvlm.serving.callers import LEFT, ApiKeys, CancelWhenCallerLeaves, RequestLog
    from pvlm.serving.completions import ChatCompletions
    from pvlm.serving.page import PAGE
except ImportError as error:
    raise ImportError(f"pvlm.serving needs {error.name}: pip install 'pvlm[serve]'") from error

READY = ("running", "silent")
"""States of a target that answers (see `ActorHealth`)."""


def create_app(
    engine: Engine, config: ServerConfig | None = None, *, registry: CollectorRegistry = REGISTRY
) -> Starlette:
    """An application that answers by an engine. It opens the engine when it starts, unless the engine is open.

    ``registry``: what ``/metrics`` shows; give the engine ``metrics=PrometheusMetrics(registry)``.
    ``app.state.workload`` is the `Workload`, which can be drained.
    """
    config = ServerConfig() if config is None else config
    settings = engine.config
    workload = Workload(settings.max_sessions + settings.max_waiting, config.max_held_bytes)
    names = config.served_model_names or (model_name(settings.target),)
    described = Described(engine, workload, names, registry)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        if engine.state is EngineState.OPEN:
            yield
        else:
            async with engine:
                yield

    keys = [Middleware(ApiKeys, keys=config.api_keys)] if config.api_keys else []
    api = [
        Route("/chat/completions", ChatCompletions(engine, config, workload, names), methods=["POST"]),
        Route("/models", described.models),
        Route("/models/{name:path}", described.model),
    ]
    app = Starlette(
        routes=[
            Mount("/v1", routes=api, middleware=keys),
            *PAGE,
            Route("/health", described.health),
            Route("/metrics", described.metrics),
            Route("/version", described.version),
        ],
        lifespan=lifespan,
        middleware=[Middleware(RequestLog), Middleware(CancelWhenCallerLeaves)],
        exception_handlers={
            Refusal: _refused,
            PvlmError: _refused,
            HTTPException: _http_error,
            ClientDisconnect: _left,
            Exception: _failed,
        },
    )
    app.state.workload = workload
    return app


def model_name(target: str) -> str:
    """The name of a target for callers: a hub name as it is, and the last part of a path."""
    return os.path.basename(os.path.normpath(target)) if os.path.exists(target) else target


class Described:
    """The endpoints that describe the server."""

    def __init__(self, engine: Engine, workload: Workload, names: tuple[str, ...], registry: CollectorRegistry) -> None:
        self._engine = engine
        self._workload = workload
        self._names = names
        self._registry = registry
        self._created = int(time.time())

    async def models(self, request: Request) -> Response:
        """The model, by each of its names."""
        return JSONResponse({"object": "list", "data": [self._model(name) for name in self._names]})

    async def model(self, request: Request) -> Response:
        """The model by one of its names. Raises Refusal for another."""
        name = request.path_params["name"]
        if name not in self._names:
            raise Refusal(404, f"there is no model {shown(name)}", param="model", code="model_not_found")
        return JSONResponse(self._model(name))

    def _model(self, name: str) -> dict[str, object]:
        info = self._engine.models.get("target")
        return {
            "id": name,
            "object": "model",
            "created": self._created,
            "owned_by": "pvlm",
            "root": self._names[0],
            "parent": None,
            "max_model_len": None if info is None else info.max_positions,
        }

    async def health(self, request: Request) -> Response:
        """The states of the models; 503 without a target, and while the server stops."""
        found = await self._engine.health(timeout_s=1.0)
        states = {role: health.state for role, health in found.items()}
        ready = states.get("target") in READY and not self._workload.draining
        status = "stopping" if self._workload.draining else "ok" if ready else "no target"
        return JSONResponse({"status": status, **states}, 200 if ready else 503)

    async def metrics(self, request: Request) -> Response:
        """The metrics, for Prometheus."""
        return Response(generate_latest(self._registry), media_type=CONTENT_TYPE_LATEST)

    async def version(self, request: Request) -> Response:
        """The version of pvlm."""
        return JSONResponse({"version": pvlm.__version__})


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refusal | PvlmError)
    refusal = refusal_of(error)
    return JSONResponse(refusal.to_dict(), refusal.status, refusal.headers)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    refusal = Refusal(error.status_code, f"{error.detail}: {request.method} {shown(request.url.path)}")
    return JSONResponse(refusal.to_dict(), refusal.status, error.headers)


async def _left(request: Request, error: Exception) -> Response:
    return Response(status_code=LEFT)  # the caller left during the upload: no one reads this response


async def _failed(request: Request, error: Exception) -> Response:
    request_id = request.state.request_id
    cause = first_of(error)
    log.error("request_failed", request_id=request_id, error=type(cause).__name__, reason=str(cause))
    refusal = Refusal(500, f"an error of the server; its log has more under the id {request_id}", code="internal_error")
    return JSONResponse(refusal.to_dict(), 500)
