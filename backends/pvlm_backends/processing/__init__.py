"""Text and frames: everything that both of a checkpoint's halves need to know, without torch."""

from __future__ import annotations

from .files import locate_checkpoint, read_settings
from .llava_onevision import LlavaOnevisionProcessor
from .prompt import PreparedPrompt, Span

__all__ = ["LlavaOnevisionProcessor", "PreparedPrompt", "Span", "load_processor"]


def load_processor(model: str) -> LlavaOnevisionProcessor:
    """The processor of a checkpoint, by the model type in its config.json.

    Raises:
        CheckpointError: the checkpoint is missing, damaged or of a kind that is not supported.
    """
    folder = locate_checkpoint(model, weights=False)
    return LlavaOnevisionProcessor(folder, read_settings(folder, "config.json"))
