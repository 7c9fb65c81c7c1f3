"""One warm engine in a web application.

Run it with ``uvicorn --app-dir examples web_app:app`` or ``python examples/web_app.py``, then::

    curl --data-binary @clip.mp4 "localhost:8000/answer?question=What+happens+in+the+video%3F"
    curl --data-binary @clip.mp4 -N "localhost:8000/stream?question=What+happens+in+the+video%3F&max_tokens=64"

``GET /metrics`` is for Prometheus, and ``GET /health`` says how the models are (503 without a target).

The body is the video. One process is enough: reading videos, the draft and the target run in processes of their own,
and the event loop stays free. Each of uvicorn's ``--workers`` would load its own models.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any

import anyio
import msgspec
import uvicorn
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pvlm import Engine, EngineBusy, OptionError, PromptError, PvlmError, TargetLost, VideoError
from pvlm.telemetry.prometheus import PrometheusMetrics

MAX_VIDEO_BYTES = 64 << 20
"""Kept in memory for each caller, also for waiting ones."""
OPTIONS = {"max_tokens": int, "temperature": float, "seed": int, "num_frames": int, "start": float, "end": float}
"""The options that a caller may set."""
STATUS = {OptionError: 400, VideoError: 422, PromptError: 422, TargetLost: 503, EngineBusy: 503}
"""Statuses of errors; any other error is 500."""
REGISTRY = CollectorRegistry()


def create_app(engine: Engine, *, callers: int = 20) -> Starlette:
    """An application for up to ``callers`` callers at a time, waiting ones included; one more gets 503."""

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        app.state.places = Places(callers)
        async with engine:  # loads the models before the first request, and ends their processes after the last
            app.state.engine = engine
            yield

    return Starlette(
        routes=[
            Route("/answer", answer, methods=["POST"]),
            Route("/stream", stream, methods=["POST"]),
            Route("/metrics", metrics),
            Route("/health", health),
        ],
        lifespan=lifespan,
        middleware=[Middleware(CancelWhenCallerLeaves)],
        exception_handlers={PvlmError: on_error, HTTPException: on_http_error, ClientDisconnect: on_disconnect},
    )


# ---- endpoints ----------------------------------------------------------------------------------------------------


async def answer(request: Request) -> Response:
    """The whole answer as one object: text, finish_reason and stats."""
    question, options = asked(request)
    async with place_for(request) as video:
        found = await request.app.state.engine.answer(video, question, **options)
    fields = {"text": found.text, "finish_reason": found.finish_reason, "stats": found.stats}
    return Response(msgspec.json.encode(fields), media_type="application/json")


async def stream(request: Request) -> Response:
    """Server-sent events: ``text`` for each piece, then ``done`` (finish_reason and stats) or ``error``."""
    events = answer_events(request, *asked(request))
    first = await anext(events)  # an error so far can still set the status
    return EventStream(first, events)


async def metrics(request: Request) -> Response:
    return Response(generate_latest(REGISTRY), media_type=CONTENT_TYPE_LATEST)


async def health(request: Request) -> Response:
    """Health of draft and target. Without a draft, answers are slower and the same."""
    found = await request.app.state.engine.health(timeout_s=1.0)
    status = 200 if found["target"].state in ("running", "silent") else 503
    return Response(msgspec.json.encode(found), status, media_type="application/json")


async def answer_events(request: Request, question: str, options: dict[str, Any]) -> AsyncIterator[bytes]:
    begun = False
    try:
        async with (
            place_for(request) as video,
            request.app.state.engine.stream(video, question, **options) as chunks,
        ):
            async for chunk in chunks:
                if chunk.text:
                    begun = True
                    yield event("text", chunk.text)
        yield event("done", {"finish_reason": chunks.answer.finish_reason, "stats": chunks.answer.stats})
    except PvlmError as error:
        if not begun:
            raise
        yield event("error", described(error))


def asked(request: Request) -> tuple[str, dict[str, Any]]:
    """Question and options from the query. Raises OptionError."""
    query = dict(request.query_params)
    question = query.pop("question", "")
    options = {}
    for name, text in query.items():
        if name not in OPTIONS:
            raise OptionError(f"unknown option '{name}': known are question, {', '.join(OPTIONS)}")
        try:
            options[name] = OPTIONS[name](text)
        except ValueError:
            raise OptionError(f"{name}={text!r} is not of type {OPTIONS[name].__name__}") from None
    return question, options


async def video_of(request: Request) -> bytearray:
    """The request's body. Raises HTTPException for a body beyond the limit."""
    video = bytearray()
    async for part in request.stream():
        video += part
        if len(video) > MAX_VIDEO_BYTES:
            raise HTTPException(413, f"the video has more than {MAX_VIDEO_BYTES >> 20} MiB")
    return video


class Places:
    """Bounds the videos in memory. The engine bounds the answers in progress (``max_sessions``)."""

    def __init__(self, callers: int) -> None:
        self.free = callers


@asynccontextmanager
async def place_for(request: Request) -> AsyncIterator[bytearray]:
    """Take a place, and read the video. Raises HTTPException at once without a free place.

    The body is read before the engine is asked, for two reasons. A server notices only after the body that a caller
    leaves, and a slow upload delays no other caller.
    """
    places: Places = request.app.state.places
    if not places.free:
        raise HTTPException(503, "too many questions are being answered: try again later", {"Retry-After": "5"})
    places.free -= 1
    try:
        yield await video_of(request)
    finally:
        places.free += 1


# ---- errors -------------------------------------------------------------------------------------------------------


def described(error: PvlmError) -> dict[str, str]:
    return {"error": type(error).__name__, "message": str(error)}


async def on_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, PvlmError)
    status = next((status for kind, status in STATUS.items() if isinstance(error, kind)), 500)
    return JSONResponse(described(error), status)


async def on_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": "HTTPException", "message": error.detail}, error.status_code, error.headers)


async def on_disconnect(request: Request, error: Exception) -> Response:
    return Response(status_code=499)  # the caller left during the upload: no one reads this response


# ---- callers that leave -------------------------------------------------------------------------------------------


class CancelWhenCallerLeaves:
    """Middleware that cancels a handler when its caller leaves. A server by itself lets the handler continue."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        body_read = anyio.Event()

        async def receive_body() -> Message:
            if body_read.is_set():
                await anyio.sleep_forever()  # what follows the body is for `wait_until_gone`
            message = await receive()
            if not message.get("more_body"):
                body_read.set()
            return message

        async def wait_until_gone() -> None:
            await body_read.wait()
            while (await receive())["type"] != "http.disconnect":
                pass
            tasks.cancel_scope.cancel()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(wait_until_gone)
            await self._app(scope, receive_body, send)
            tasks.cancel_scope.cancel()


class EventStream(StreamingResponse):
    """Server-sent events. Ends the generator, and so the answer, also when the caller leaves between two events."""

    def __init__(self, first: bytes, events: AsyncIterator[bytes]) -> None:
        super().__init__(self._all(first), media_type="text/event-stream", headers={"Cache-Control": "no-store"})
        self._events = events

    async def _all(self, first: bytes) -> AsyncIterator[bytes]:
        yield first
        async for event in self._events:
            yield event

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with aclosing(self._events):  # type: ignore[type-var]
            await super().__call__(scope, receive, send)


def event(name: str, data: Any) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (name.encode(), msgspec.json.encode(data))


app = create_app(Engine.create(metrics=PrometheusMetrics(REGISTRY)))

if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=int(os.environ.get("PORT", "8000")))
