"""Models by Hugging Face transformers."""

from __future__ import annotations

from .backend import HuggingFaceBackend

__all__ = ["HuggingFaceBackend"]
