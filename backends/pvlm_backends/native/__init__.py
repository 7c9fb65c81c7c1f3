"""Short passes of the raw-torch model as compiled code, for x86-64 CPUs."""

from __future__ import annotations

from .backend import NativeBackend

__all__ = ["NativeBackend"]
