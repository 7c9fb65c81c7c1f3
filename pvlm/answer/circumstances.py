"""What surrounds an answer: the name of its video, its settings, and the time before its session."""

from __future__ import annotations

from typing import Any

import msgspec

from pvlm.answer.question import Question
from pvlm.answer.statistics import Timeline
from pvlm.config import EngineConfig
from pvlm.telemetry.recorder import Circumstances

ELSEWHERE = ("target", "draft", "keys")
"""Settings that a trace names by other means, or not at all."""


def circumstances(config: EngineConfig, question: Question, timeline: Timeline) -> Circumstances:
    """The circumstances of an answer whose session is about to be opened."""
    return Circumstances(
        video=", ".join(media.name for media in question.media),
        settings={**_changed(config), **_changed(question.options)},
        before_s={
            "startup_s": timeline.between_s("asked", "queued"),
            "waiting_s": timeline.between_s("queued", "reading"),
            "video_s": timeline.between_s("reading", "opened"),
        },
    )


def _changed(settings: msgspec.Struct) -> dict[str, Any]:
    """The settings that are not the defaults."""
    changed = {}
    for field in msgspec.structs.fields(settings):
        value = getattr(settings, field.name)
        if field.name not in ELSEWHERE and value != field.default:
            changed[field.name] = value
    return changed
