"""LLaVA-OneVision and Qwen2.5-VL in plain torch: few operations a token, static buffers, no framework in between."""

from __future__ import annotations

from .backend import TorchBackend

__all__ = ["TorchBackend"]
