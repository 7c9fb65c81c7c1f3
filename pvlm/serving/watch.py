"""What draft and target do in one answer, for a live view: a recorder whose record is taken piece by piece."""

from __future__ import annotations

import io
import time
from base64 import b64encode
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pvlm.answer.detokenizer import TextStream
from pvlm.coordination.events import Command, Emit, Event, Finish
from pvlm.results import Answer
from pvlm.telemetry.figures import figures
from pvlm.telemetry.recorder import Recorded
from pvlm_protocols.messages import DraftWindow, PruneMask, Verdict

FRAMES = 24
"""The largest number of frames that are shown, at equal distances."""
WIDTH = 160
"""Pixels of a shown frame."""


class Watch:
    """A `Recorder`. `take` gives what has happened since it was last called, as an object for JSON.

    ``pieces``: who wrote what (``d``, ``c`` or ``t`` as in `AnswerStats.origins`, and the text); ``lanes``: work of the
    draft and passes of the target, in ms since the session was opened; ``video``: the frames, with the number of the
    grid's moment of each, and the grid; ``mask``: the video tokens that the draft sees; ``figures``: of the end.
    """

    def __init__(self, stop: Sequence[str] = ()) -> None:
        """``stop``: the strings that end the answer."""
        self._stop = stop
        self._began_s = 0.0
        self._subject: Recorded | None = None
        self._text: TextStream | None = None
        self._found: dict[str, Any] = {}

    # ---- as a recorder --------------------------------------------------------------------------------------------

    def began(self, recorded: Recorded) -> None:
        """Note what the answer is about."""
        self._began_s = time.monotonic()
        self._subject = recorded
        self._text = TextStream(recorded.processor.decode, self._stop)
        if recorded.opening.visuals:
            self._found["video"] = {}  # made by `take`, because it takes a while

    def handled(self, event: Event, commands: Sequence[Command]) -> None:
        """Note texts and lanes."""
        match event:
            case DraftWindow(tokens=tokens, began_s=began_s, ended_s=ended_s) if tokens:
                self._lane("draft", began_s, ended_s, tokens=len(tokens))
            case Verdict(pass_tokens=size, pass_ms=pass_ms, ended_s=ended_s) if size:
                counts = {"tokens": size, "accepted": event.accepted, "rejected": event.rejected}
                self._lane("target", ended_s - pass_ms / 1000, ended_s, **counts)
            case PruneMask(bits=bits, video_tokens=tokens, kept=kept):
                self._found["mask"] = {"bits": b64encode(bits).decode(), "tokens": tokens, "kept": kept}
        for command in commands:
            self._write(command)

    def ended(self, answer: Answer) -> None:
        """Note the figures."""
        self._found["figures"] = figures(answer.stats)
        self._found["stats"] = {
            "method": answer.stats.method,
            "decode_s": answer.stats.decode_s,
            "total_s": answer.stats.total_s,
            "new_tokens": answer.stats.new_tokens,
        }

    # ---- what is taken --------------------------------------------------------------------------------------------

    def take(self) -> dict[str, Any]:
        """What has happened since the last call. The first call takes a few ms for each frame."""
        found, self._found = self._found, {}
        if "video" in found:
            found["video"] = self._video()
        return found

    def _lane(self, row: str, began_s: float, ended_s: float, **details: Any) -> None:
        began_ms, ended_ms = (round(1000 * (at_s - self._began_s), 2) for at_s in (began_s, ended_s))
        lanes = self._found.setdefault("lanes", [])
        lanes.append({"row": row, "begin_ms": began_ms, "end_ms": ended_ms, **details})

    def _write(self, command: Command) -> None:
        assert self._text is not None
        match command:
            case Emit(tokens=tokens, accepted=accepted, corrected=corrected):
                for index, token in enumerate(tokens):
                    own = "c" if corrected and index == accepted else "t"
                    if not self._text.stopped:
                        self._piece("d" if index < accepted else own, self._text.push(token))
            case Finish():
                self._piece("t", self._text.flush())

    def _piece(self, origin: str, text: str) -> None:
        if text:
            self._found.setdefault("pieces", []).append([origin, text])

    def _video(self) -> dict[str, Any]:
        """The frames of the first video or image."""
        assert self._subject is not None
        visual = self._subject.opening.visuals[0]
        t, h, w = self._subject.processor.video_grid(visual.pixels)
        count = len(visual.pixels)
        shown = sorted({round(place) for place in np.linspace(0, count - 1, min(count, FRAMES))})
        return {
            "grid": [t, h, w],
            "frames": [{"moment": index * t // count, "picture": _picture(visual.pixels[index])} for index in shown],
        }


def _picture(frame: NDArray[np.uint8]) -> str:
    """A small JPEG of a frame, uint8 ``(H, W, 3)``, as a data URL."""
    height, width = frame.shape[:2]
    encoded = io.BytesIO()
    Image.fromarray(frame).resize((WIDTH, max(1, WIDTH * height // width))).save(encoded, "JPEG", quality=80)
    return f"data:image/jpeg;base64,{b64encode(encoded.getvalue()).decode()}"
