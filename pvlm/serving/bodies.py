"""The body of a request, read within limits of kind, size and time."""

from __future__ import annotations

from collections.abc import Callable

import anyio
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope

from pvlm.serving.refusals import Refusal


async def read_json_body(
    scope: Scope, receive: Receive, *, limit: int, timeout_s: float, take: Callable[[int], None]
) -> bytearray:
    """Read a body that is JSON by its header. ``take``: is called with the size of each piece, and may refuse it.

    Raises Refusal as soon as a limit is passed, and ClientDisconnect if the caller leaves.
    """
    headers = Headers(scope=scope)
    if headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise Refusal(415, "send the request as 'Content-Type: application/json'", code="unsupported_media_type")
    announced = headers.get("content-length", "")
    if announced.isdigit() and int(announced) > limit:
        raise _too_large(limit)
    body = bytearray()
    try:
        with anyio.fail_after(timeout_s):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ClientDisconnect
                piece = message.get("body", b"")
                if len(body) + len(piece) > limit:
                    raise _too_large(limit)
                take(len(piece))
                body += piece
                if not message.get("more_body", False):
                    return body
    except TimeoutError:
        raise Refusal(408, f"the body did not arrive within {timeout_s:g} s", code="body_timeout") from None


def _too_large(limit: int) -> Refusal:
    return Refusal(413, f"the body has more than {limit} bytes: send a smaller video", code="body_too_large")
