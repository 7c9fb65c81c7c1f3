"""Refusals: why a request gets no answer, as a status and OpenAI's error object."""

from __future__ import annotations

import re
from typing import Any

from pvlm.config import AnswerOptions
from pvlm.errors import (
    EngineBusy,
    EngineStateError,
    OptionError,
    PromptError,
    PvlmError,
    StreamIdle,
    TargetLost,
    VideoError,
)

RETRY_AFTER = {"Retry-After": "5"}
"""For refusals that another try may not meet: the time in seconds until then."""
KINDS = {400: "invalid_request_error", 401: "authentication_error", 429: "rate_limit_error", 503: "service_unavailable"}
"""OpenAI's ``type`` of an error, by status; others are of the kind of 400, or ``server_error``."""


class Refusal(Exception):
    """A request that gets no answer. ``param``: the field of the request that is to blame; ``code``: for programs."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code
        self.headers = {} if headers is None else headers

    def to_dict(self) -> dict[str, Any]:
        """OpenAI's error object."""
        kind = KINDS.get(self.status, "server_error" if self.status >= 500 else KINDS[400])
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


def invalid(message: str, param: str | None = None, code: str | None = None) -> Refusal:
    """The refusal of an invalid request."""
    return Refusal(400, message, param=param, code=code)


def refusal_of(error: PvlmError | Refusal) -> Refusal:
    """The refusal for an error of the engine."""
    match error:
        case Refusal():
            return error
        case VideoError():  # its path may be a name that the caller must not see
            return invalid(f"cannot read the video: {error.reason}", "messages", "invalid_video")
        case OptionError():
            return invalid(str(error), _field(str(error)))
        case PromptError():
            return invalid(str(error), "messages")
        case EngineBusy():
            return Refusal(429, str(error), code="queue_full", headers=RETRY_AFTER)
        case TargetLost() | EngineStateError():
            return Refusal(503, str(error), code="target_lost", headers=RETRY_AFTER)
        case StreamIdle():
            return Refusal(408, str(error), code="stream_idle")
    return Refusal(500, str(error), code=type(error).__name__)


def _field(message: str) -> str | None:
    """The field that an error names first."""
    name = re.split(r"[^\w]", message, maxsplit=1)[0]
    return name if name in ("messages", *AnswerOptions.__struct_fields__) else None
