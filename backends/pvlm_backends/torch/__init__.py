"""LLaVA-OneVision in plain torch: few operations for each token, static buffers, no framework in between."""

from __future__ import annotations

from .backend import TorchBackend

__all__ = ["TorchBackend"]
