"""Text and frames: the parts of a processor that all families share. Imports no torch."""

from __future__ import annotations

from .processor import VideoPart, VideoProcessor
from .prompt import PreparedPrompt

__all__ = ["PreparedPrompt", "VideoPart", "VideoProcessor"]
