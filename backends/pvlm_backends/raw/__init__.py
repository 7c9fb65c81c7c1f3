"""The plug-in ``torch``: a Qwen2 decoder in plain torch, with few operations a token and static buffers."""

from __future__ import annotations

from .backend import TorchBackend

__all__ = ["TorchBackend"]
