"""An n-gram model that drafts for pvlm."""

from __future__ import annotations

from .backend import NgramBackend

__all__ = ["NgramBackend"]
