"""Model families: one folder for each, and the registry that finds a checkpoint's family. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pvlm_protocols.backend import CheckpointError

from ..processing import VideoProcessor
from ..processing.files import locate_checkpoint, read_settings
from .family import Family, VideoTower
from .llava_onevision import LLAVA_ONEVISION
from .qwen2_5_vl import QWEN2_5_VL
from .qwen3_vl import QWEN3_VL

__all__ = ["FAMILIES", "Family", "VideoTower", "find_family", "load_processor"]

FAMILIES: dict[str, Family[Any]] = {family.model_type: family for family in (LLAVA_ONEVISION, QWEN2_5_VL, QWEN3_VL)}
"""Every family by its ``model_type``."""


def find_family(folder: Path, settings: Mapping[str, Any]) -> Family[Any]:
    """Return the family of a checkpoint.

    Args:
        folder: the checkpoint's folder, for messages.
        settings: its config.json.

    Raises:
        CheckpointError: no family has this ``model_type``.
    """
    found = settings.get("model_type")
    if found not in FAMILIES:
        supported = ", ".join(map(repr, FAMILIES))
        raise CheckpointError(
            f"{folder} is a {found!r} checkpoint; supported: {supported}; the backend 'hf' runs others"
        )
    return FAMILIES[found]


def load_processor(model: str) -> VideoProcessor:
    """Load the text and frame half of a checkpoint.

    Args:
        model: a folder, or a name on the Hugging Face Hub.

    Raises:
        CheckpointError: the checkpoint is missing, damaged or of an unknown family.
    """
    folder = locate_checkpoint(model, weights=False)
    settings = read_settings(folder, "config.json")
    return find_family(folder, settings).processor(folder, settings)
