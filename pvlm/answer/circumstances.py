"""What surrounds an answer: the name of its video, its settings, and the time before its session."""

from __future__ import annotations

import os
from collections.abc import Sized
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from pvlm.answer.request import Question
from pvlm.answer.statistics import Timeline
from pvlm.config import EngineConfig
from pvlm.telemetry.recorder import Circumstances

if TYPE_CHECKING:
    from pvlm.video.reading import VideoSource

ELSEWHERE = ("target", "draft", "keys")
"""Settings that a trace names by other means, or not at all."""


def circumstances(config: EngineConfig, question: Question, timeline: Timeline) -> Circumstances:
    """The circumstances of an answer whose session is about to be opened."""
    return Circumstances(
        video=_name(question.video),
        settings={**_changed(config), **_changed(question.options)},
        before_s={
            "startup_s": timeline.between_s("asked", "queued"),
            "waiting_s": timeline.between_s("queued", "reading"),
            "video_s": timeline.between_s("reading", "opened"),
        },
    )


def _name(video: VideoSource | None) -> str:
    """A file's name without its folder, because a trace may be shown to others; else what kind of video it is."""
    if video is None:
        return ""
    if isinstance(video, str | os.PathLike):
        return Path(video).name
    if isinstance(video, bytes | bytearray | memoryview):
        return f"{len(video)} bytes"
    return f"{len(video)} frames" if isinstance(video, Sized) else "an image"


def _changed(settings: msgspec.Struct) -> dict[str, Any]:
    """The settings that are not the defaults."""
    changed = {}
    for field in msgspec.structs.fields(settings):
        value = getattr(settings, field.name)
        if field.name not in ELSEWHERE and value != field.default:
            changed[field.name] = value
    return changed
