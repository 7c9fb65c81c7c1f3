"""``POST /v1/chat/completions``: one request from its body to the last byte of its reply."""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import anyio.to_thread
import msgspec
from starlette.types import Receive, Scope, Send

from pvlm.engine import Engine
from pvlm.errors import PvlmError
from pvlm.redaction import shown
from pvlm.serving.bodies import read_json_body
from pvlm.serving.configuration import ServerConfig
from pvlm.serving.media import Media
from pvlm.serving.refusals import Refusal, refusal_of
from pvlm.serving.replies import DONE, Reply, event
from pvlm.serving.requests import ChatRequest, conversation, parse
from pvlm.serving.watch import Watch
from pvlm.serving.workload import Holding, Workload

SMALL = 1 << 16
"""Bytes of a body that is parsed in no time, and so without a thread."""


class ChatCompletions:
    """The endpoint, an ASGI application."""

    def __init__(self, engine: Engine, config: ServerConfig, workload: Workload, models: tuple[str, ...]) -> None:
        """``models``: the names of the model."""
        self._engine = engine
        self._config = config
        self._workload = workload
        self._models = models
        self._media = Media(config)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        sender = Sender(send)
        try:
            with self._workload.place() as holding:
                await self._reply(scope, receive, sender, holding)
        except (Refusal, PvlmError) as error:
            if not sender.streams:
                raise
            await sender.events(refusal_of(error).to_dict(), last=True)

    async def _reply(self, scope: Scope, receive: Receive, sender: Sender, holding: Holding) -> None:
        config = self._config
        body = await read_json_body(
            scope, receive, limit=config.max_body_bytes, timeout_s=config.body_timeout_s, take=holding.take
        )
        request = parse(body) if len(body) < SMALL else await anyio.to_thread.run_sync(parse, body)
        del body
        reply = self._reply_to(request, scope["state"]["request_id"])
        with ExitStack() as files:
            owner = scope["state"].get("caller", ""), request.cache_salt
            media = await self._media.bring(request.media, owner, files, holding.take)
            messages = conversation(request, media)
            request = replace(request, messages=())  # the URLs may hold whole videos, which are in `media` now
            watch = Watch(request.stop) if request.watch else None
            async with self._engine.stream(messages=messages, trace=watch, **request.options) as chunks:
                async for chunk in chunks:
                    if request.stream and (chunk.text or watch is not None):
                        opening = [] if sender.streams else [reply.opening()]
                        await sender.events(*opening, reply.piece(chunk.text) | await _watched(watch))
            answer = chunks.answer
        if not request.stream:
            await sender.whole(reply.whole(answer))
            return
        closing = reply.closing(answer)
        closing[0] |= await _watched(watch)
        await sender.events(*([] if sender.streams else [reply.opening()]), *closing, last=True)

    def _reply_to(self, request: ChatRequest, request_id: str) -> Reply:
        """Raises Refusal for an unknown model."""
        if request.model is not None and request.model not in self._models:
            raise Refusal(
                404, f"there is no model {shown(request.model)}: use '{self._models[0]}'",
                param="model", code="model_not_found",
            )  # fmt: skip
        return Reply(
            id=f"chatcmpl-{request_id}",
            model=request.model or self._models[0],
            created=int(time.time()),
            include_usage=request.include_usage,
            speculation=self._config.spec_decode_metrics,
            times=self._config.request_metrics,
        )


async def _watched(watch: Watch | None) -> dict[str, Any]:
    """The field for those who watch; none if nothing has happened."""
    found = None if watch is None else await anyio.to_thread.run_sync(watch.take)
    return {"pvlm": found} if found else {}


class Sender:
    """Sends one reply, whole or as events. ``streams``: events have been sent."""

    def __init__(self, send: Send) -> None:
        self.streams = False
        self._send = send

    async def whole(self, found: dict[str, Any]) -> None:
        """Send one object."""
        content = msgspec.json.encode(found)
        length = str(len(content)).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", length)]
        await self._send({"type": "http.response.start", "status": 200, "headers": headers})
        await self._send({"type": "http.response.body", "body": content})

    async def events(self, *events: dict[str, Any], last: bool = False) -> None:
        """Send events in one piece, and after the ``last`` the end of the stream."""
        if not self.streams:
            headers = [
                (b"content-type", b"text/event-stream; charset=utf-8"),
                (b"cache-control", b"no-store"),
                (b"x-accel-buffering", b"no"),
            ]
            await self._send({"type": "http.response.start", "status": 200, "headers": headers})
            self.streams = True
        content = b"".join(map(event, events)) + (DONE if last else b"")
        await self._send({"type": "http.response.body", "body": content, "more_body": not last})
