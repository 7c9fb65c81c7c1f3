"""A model without weights: its text is given by a seed, its times and its guesses by a specification."""

from __future__ import annotations

from .backend import EmulatedBackend

__all__ = ["EmulatedBackend"]
