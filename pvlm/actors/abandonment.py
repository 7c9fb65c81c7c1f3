"""Why a session leaves a unit of work before its end."""

from __future__ import annotations


class WorkAbandoned(Exception):
    """A message has come that makes the work in hand worthless, or the work must wait for something."""
