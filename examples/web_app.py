"""The engine within an application of your own: a page of it beside the API that `pvlm serve` has.

Run it with ``uvicorn --app-dir examples web_app:app`` or ``python examples/web_app.py``, then::

    curl "localhost:8000/clips/two-scenes?question=How+many+scenes+are+there%3F"
    curl localhost:8000/api/v1/models

One engine serves both, and one process is enough: reading videos, the draft and the target run in processes of their
own. Each of uvicorn's ``--workers`` would load its own models.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route

import pvlm
from pvlm import Engine, EngineBusy, OptionError, PvlmError, TargetLost
from pvlm.serving import ServerConfig, create_app
from pvlm.telemetry.prometheus import PrometheusMetrics

CLIPS = {path.stem: path for path in Path(pvlm.__file__).parent.glob("bundled/clips/*.mp4")}
"""Your videos: here the bundled clips."""
STATUS = {OptionError: 400, EngineBusy: 429, TargetLost: 503}
"""Statuses of errors; any other error is 500."""

engine = Engine.create(metrics=PrometheusMetrics())


async def clip(request: Request) -> Response:
    """The answer to ``?question=`` about a clip. When the caller has left, nobody stops it: it is short."""
    if (path := CLIPS.get(request.path_params["name"])) is None:
        return JSONResponse({"error": f"there is no clip: try {', '.join(sorted(CLIPS))}"}, 404)
    answer = await engine.answer(path, request.query_params.get("question", "Describe the video."), max_tokens=128)
    return JSONResponse({"answer": answer.text, "seconds": round(answer.stats.total_s, 3)})


async def on_error(request: Request, error: Exception) -> Response:
    status = next((status for kind, status in STATUS.items() if isinstance(error, kind)), 500)
    return JSONResponse({"error": str(error)}, status)


@asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[None]:
    async with engine:  # loads the models before the first request, and ends their processes after the last
        yield


app = Starlette(
    routes=[
        Route("/clips/{name}", clip),
        Mount("/api", create_app(engine, ServerConfig(served_model_names=("clips",)))),
    ],
    lifespan=lifespan,
    exception_handlers={PvlmError: on_error},
)

if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=int(os.environ.get("PORT", "8000")))
