"""Toy models as plug-ins, for engines whose metrics are read."""

from __future__ import annotations

from tests.engine.conftest import _toys, anyio_backend, bombs

__all__ = ["_toys", "anyio_backend", "bombs"]
