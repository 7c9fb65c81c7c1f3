"""The server: an OpenAI-compatible application around one engine (``pip install 'pvlm[serve]'``).

`requests`, `replies` and `refusals` are pure: a request in, the engine's options out; chunks in, events out. `media`,
`folders` and `remote` bring the videos. `application` has the routes, and `server` runs them until a signal. `ray`
runs them in replicas on many machines.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pvlm.serving.configuration import ServerConfig

if TYPE_CHECKING:
    from pvlm.serving.application import create_app

__all__ = ["ServerConfig", "create_app"]


def __getattr__(name: str) -> Any:
    """`create_app` is imported when it is used, for it needs starlette."""
    if name != "create_app":
        raise AttributeError(f"module 'pvlm.serving' has no attribute '{name}'")
    from pvlm.serving.application import create_app

    return create_app
