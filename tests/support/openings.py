"""The turns of an `Open` that asks one question."""

from __future__ import annotations

from pvlm_protocols.turns import OpenTurn, VideoFrames


def asking(question: str = "?", video: VideoFrames | None = None) -> tuple[OpenTurn, ...]:
    """One user turn, with the video before the question."""
    return (OpenTurn(role="user", parts=(question,) if video is None else (video, question)),)
