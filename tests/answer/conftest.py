"""Toy models as plug-ins, for answers of whole engines."""

from __future__ import annotations

from tests.engine.conftest import _toys, anyio_backend

__all__ = ["_toys", "anyio_backend"]
