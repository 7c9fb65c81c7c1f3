"""An actor's failure as a message."""

from __future__ import annotations

import traceback

from pvlm_protocols.backend import Role
from pvlm_protocols.limits import MAX_ERROR_CHARACTERS, MAX_NAME_CHARACTERS, MAX_TRACEBACK_CHARACTERS
from pvlm_protocols.messages import Dying


def dying(role: Role, error: BaseException) -> Dying:
    """The message by which an actor tells why it goes down."""
    return Dying(role=role, **error_fields(error))


def error_fields(error: BaseException) -> dict[str, str]:
    """An error as text that travels: within its fields' limits, and without halves of surrogate pairs, which names of
    files may hold. Of a traceback the end stays.
    """
    texts = type(error).__name__, str(error), "".join(traceback.format_exception(error))
    name, message, trace = (text.encode(errors="backslashreplace").decode() for text in texts)
    return {
        "error": name[:MAX_NAME_CHARACTERS],
        "message": message[:MAX_ERROR_CHARACTERS],
        "traceback": trace[-MAX_TRACEBACK_CHARACTERS:],
    }
