"""Text and frames: everything that both of a checkpoint's halves need to know, without torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pvlm_protocols.backend import CheckpointError

from .files import locate_checkpoint, read_settings
from .llava_onevision import LlavaOnevisionProcessor
from .processor import VideoProcessor
from .prompt import PreparedPrompt, Span
from .qwen2_5_vl import Qwen25VLProcessor

__all__ = [
    "LlavaOnevisionProcessor",
    "PreparedPrompt",
    "Qwen25VLProcessor",
    "Span",
    "VideoProcessor",
    "load_processor",
    "processor_of",
]

_FAMILIES: dict[str, type[VideoProcessor]] = {
    family.model_type: family for family in (LlavaOnevisionProcessor, Qwen25VLProcessor)
}


def load_processor(model: str) -> VideoProcessor:
    """The processor of a checkpoint, by the model type in its config.json.

    Raises:
        CheckpointError: the checkpoint is missing, damaged or of a kind that is not supported.
    """
    folder = locate_checkpoint(model, weights=False)
    return processor_of(folder, read_settings(folder, "config.json"))


def processor_of(folder: Path, config: dict[str, Any]) -> VideoProcessor:
    """The processor of a located checkpoint, given its config.json. Raises CheckpointError as `load_processor` does."""
    found = config.get("model_type")
    if found not in _FAMILIES:
        supported = ", ".join(repr(family) for family in _FAMILIES)
        raise CheckpointError(f"{folder} is a {found!r} checkpoint; supported: {supported}")
    return _FAMILIES[found](folder, config)
