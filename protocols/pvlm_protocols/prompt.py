"""What a backend is asked: a question about a video, or a conversation with several videos and images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import numpy as np

Speaker = Literal["system", "user", "assistant"]
"""Of a turn of a conversation."""
VisualKind = Literal["video", "image"]


@dataclass(frozen=True, eq=False)
class Visual:
    """A video or an image in a prompt.

    ``frames``: uint8 ``(T, H, W, 3)`` RGB, already resized by `Processor.resize`, an image by
    `Conversations.resize_image`. ``timestamps_s``: seconds from the start of the video, one for each frame, or none.
    ``size``: height and width of the source, in pixels. ``digest``: equal for equal content only; empty where nobody
    has computed it. ``missing``: the frames have their shape and no pixels, because a kept prefix may hold them.
    """

    frames: np.ndarray
    timestamps_s: tuple[float, ...] = ()
    kind: VisualKind = "video"
    size: tuple[int, int] = (0, 0)
    digest: bytes = b""
    missing: bool = False


@dataclass(frozen=True, eq=False)
class Turn:
    """What one side says in a conversation: texts, videos and images, in this order."""

    role: Speaker
    parts: tuple[str | Visual, ...]

    @property
    def text(self) -> str:
        """Its texts, one a line."""
        return "\n".join(part for part in self.parts if isinstance(part, str))


@dataclass(frozen=True)
class Prompt:
    """One question about one video (or about none), or a conversation that ends with a question.

    ``frames``: uint8 ``(T, H, W, 3)`` RGB, already resized by `Processor.resize`, or None.
    ``timestamps_s``: seconds from the start of the video, one for each frame (for models that use time).
    ``turns``: the whole conversation; then ``question`` is the text of its last turn, and ``frames`` is None. Empty for
    a question alone. Only backends whose processor offers `Conversations` get them.
    ``digest``, ``missing``: of the frames; see `Visual`.
    """

    question: str
    frames: np.ndarray | None = None
    timestamps_s: tuple[float, ...] = ()
    turns: tuple[Turn, ...] = ()
    digest: bytes = b""
    missing: bool = False

    @classmethod
    def of(cls, turns: tuple[Turn, ...]) -> Prompt:
        """Make a prompt of turns, of which the last one asks; without ``turns`` for a question with at most one video.

        Videos come before the text in such a question.
        """
        match turns:
            case (Turn(role="user", parts=(str() as question,)),):
                return cls(question)
            case (Turn(role="user", parts=(Visual(kind="video") as video, str() as question)),):
                return cls(question, video.frames, video.timestamps_s, digest=video.digest, missing=video.missing)
        return cls(turns[-1].text, turns=turns)

    @property
    def conversation(self) -> tuple[Turn, ...]:
        """The turns; for a question alone, the turn that asks it."""
        if self.turns:
            return self.turns
        video: tuple[Visual, ...] = ()
        if self.frames is not None:
            video = (Visual(self.frames, self.timestamps_s, digest=self.digest, missing=self.missing),)
        return (Turn("user", (*video, self.question)),)
