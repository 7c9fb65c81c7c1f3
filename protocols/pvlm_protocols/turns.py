"""The prompt of `pvlm_protocols.messages.Open`: its turns, and the frames of their videos and images."""

from __future__ import annotations

from typing import Annotated

import msgspec
import numpy as np
from msgspec import Meta

from pvlm_protocols.limits import (
    MAX_DIGEST_BYTES,
    MAX_FRAME_SIDE,
    MAX_PARTS,
    MAX_PROMPT_CHARACTERS,
    MAX_VIDEO_FRAMES,
)
from pvlm_protocols.prompt import Speaker, VisualKind

Seconds = Annotated[float, Meta(ge=-1e9, le=1e9)]
Side = Annotated[int, Meta(ge=0, le=MAX_FRAME_SIDE)]
"""Of a picture, in pixels."""
Text = Annotated[str, Meta(max_length=MAX_PROMPT_CHARACTERS)]
"""Of a prompt."""


class VideoFrames(msgspec.Struct, frozen=True, kw_only=True):
    """``pixels``: uint8 ``(T, H, W, 3)``, resized for the model; ``timestamps_s``: one for each frame.

    ``checksum``: the CRC-32 of the pixels in C order. Connections need it, computed on the event loop if it is None.
    ``kind``: an image is in the form that the model's processor has given it. ``size``: height and width of the source.
    ``digest``: equal for equal content only; empty where it is unknown.
    ``left_out``: how many frames stay at home, because the actor is likely to have kept their rows. It asks for them by
    `NeedVideo` where it has not. Then ``pixels`` has the shape ``(0, H, W, 3)``; else it is 0.
    """

    pixels: np.ndarray
    timestamps_s: Annotated[tuple[Seconds, ...], Meta(max_length=MAX_VIDEO_FRAMES)] = ()
    checksum: Annotated[int, Meta(ge=0, le=2**32 - 1)] | None = None
    kind: VisualKind = "video"
    size: tuple[Side, Side] = (0, 0)
    digest: Annotated[bytes, Meta(max_length=MAX_DIGEST_BYTES)] = b""
    left_out: Annotated[int, Meta(ge=0, le=MAX_VIDEO_FRAMES)] = 0

    @property
    def frames(self) -> int:
        """How many frames the model sees."""
        return len(self.pixels) + self.left_out

    def without_pixels(self) -> VideoFrames:
        """The same with all frames left out."""
        return msgspec.structs.replace(self, pixels=self.pixels[:0], checksum=None, left_out=self.frames)


class OpenTurn(msgspec.Struct, frozen=True, kw_only=True):
    """A turn of the conversation: texts, videos and images in their order."""

    role: Speaker
    parts: Annotated[tuple[Text | VideoFrames, ...], Meta(max_length=MAX_PARTS)]
