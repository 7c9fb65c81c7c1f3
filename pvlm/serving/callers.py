"""What surrounds every request: its id and its line in the log, the key it needs, and the end of its caller."""

from __future__ import annotations

import hmac
import re
import time
import uuid
from collections.abc import Sequence

import anyio
import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pvlm.log import log
from pvlm.serving.refusals import Refusal

LEFT = 499
"""The status in the log of a request whose caller left before the reply began; nginx's number."""
_ID = re.compile(r"[\w.:-]{1,128}", re.ASCII)


class RequestLog:
    """Middleware that gives each request an id (the caller's ``X-Request-Id``, if it has one), and logs its end.

    The id is in the reply too. Queries and bodies are not logged.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        given = Headers(scope=scope).get("x-request-id", "")
        request_id = given if _ID.fullmatch(given) else uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = request_id
        began_s = time.perf_counter()
        status, sent, whole = LEFT, 0, False

        async def send_counted(message: Message) -> None:
            nonlocal status, sent, whole
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["X-Request-Id"] = request_id
            elif message["type"] == "http.response.body":
                sent += len(message.get("body", b""))
                whole = not message.get("more_body", False)
            await send(message)

        with structlog.contextvars.bound_contextvars(request_id=request_id):
            try:
                await self._app(scope, receive, send_counted)
            except Exception:
                status = 500 if status == LEFT else status
                raise
            finally:
                log.info(
                    "http_request",
                    request_id=request_id,
                    method=scope["method"],
                    path=scope["path"],
                    caller=(scope.get("client") or ("",))[0],
                    status=status,
                    bytes=sent,
                    complete=whole,
                    duration_s=round(time.perf_counter() - began_s, 4),
                )


class ApiKeys:
    """Middleware that refuses requests without one of the keys, and notes the key as the request's ``caller``."""

    def __init__(self, app: ASGIApp, keys: Sequence[str]) -> None:
        self._app = app
        self._keys = [key.encode() for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        key = self._known(scope)
        if key is None:
            refused = Refusal(
                401, "send a valid key: 'Authorization: Bearer KEY'", code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )  # fmt: skip
            return await JSONResponse(refused.to_dict(), refused.status, refused.headers)(scope, receive, send)
        scope.setdefault("state", {})["caller"] = key
        await self._app(scope, receive, send)

    def _known(self, scope: Scope) -> str | None:
        """The key, if it is one of the server's."""
        kind, _, key = Headers(scope=scope).get("authorization", "").partition(" ")
        given = key.strip().encode("latin-1")
        found = [hmac.compare_digest(given, known) for known in self._keys]  # each, in a time that reveals nothing
        return key.strip() if kind.lower() == "bearer" and any(found) else None


class CancelWhenCallerLeaves:
    """Middleware that cancels a handler when its caller leaves. A server by itself lets the handler continue.

    A reply before the end of the request's body closes the connection, so that no rest of the body is read.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        body_read = anyio.Event()
        headers = Headers(scope=scope)
        has_body = "transfer-encoding" in headers or headers.get("content-length", "0") != "0"

        async def send_last(message: Message) -> None:
            if message["type"] == "http.response.start" and has_body and not body_read.is_set():
                MutableHeaders(scope=message)["Connection"] = "close"
            await send(message)

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
            await self._app(scope, receive_body, send_last)
            tasks.cancel_scope.cancel()
