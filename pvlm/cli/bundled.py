"""What comes with the package: drawn clips, and a pair that knows such clips and questions about them alone."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.resources import as_file, files
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from pvlm.coordination.events import Command, Event
    from pvlm.results import Answer
    from pvlm.telemetry.recorder import Recorded, Recorder

LIMIT = "the bundled pair knows drawn shapes only, and {what}; for real videos: --target MODEL --draft MODEL"
QUESTIONS = (
    "Describe the video( in detail)?.",
    "What happens in (the video|scene .+)?",
    "Describe scene .+.",
    "What is the background of scene .+?",
    "What color is the (background|.+) in scene .+?",
    "Which color does the .+ in scene .+ have?",
    "How many objects are in scene .+?",
    "Count the objects in scene .+.",
    "In which scene is the .+?",
    "Which scene shows the .+?",
    "What does the .+ do?",
    "What happens to the .+?",
    "Where is the .+ at first?",
    "Where does the .+ start?",
    "How big is the .+ at first?",
    "Is the .+ small or large at first?",
    "Does the .+ .+?",
    "Is it true that the .+ .+?",
    "List the objects in order.",
    "Which objects appear in the video?",
    "How many scenes are there?",
    "Count the scenes.",
    "What does the last scene show?",
    "What is shown at the end?",
)
"""Regular expressions but for the last character, of the questions that the pair was trained on."""
FLAT = 0.9
"""Share of equal neighbours in the pixels of a drawn frame; the bundled clips have 0.95 and more."""
EQUAL = 6
"""Largest difference of neighbours that count as equal, of 255."""


class BundledClip(msgspec.Struct, frozen=True):
    """A bundled clip: its file beside ``clips.json``, a question, and the true answer."""

    file: str
    question: str
    answer: str


def bundled_clips() -> list[BundledClip]:
    """The bundled clips; the demo uses the first."""
    return msgspec.json.decode(
        (files("pvlm") / "bundled" / "clips" / "clips.json").read_bytes(), type=list[BundledClip]
    )


@contextmanager
def clips_folder() -> Iterator[Path]:
    """The folder of the bundled clips."""
    with as_file(files("pvlm") / "bundled" / "clips") as folder:
        yield folder


def knows_question(question: str) -> bool:
    """Whether the bundled pair was trained on questions like this one."""
    return any(re.fullmatch(known[:-1] + re.escape(known[-1]), question.strip()) for known in QUESTIONS)


def is_drawn(frames: NDArray[np.uint8]) -> bool:
    """Whether frames, uint8 ``(T, H, W, 3)``, consist of even areas, as drawn ones do."""
    differences = np.abs(np.diff(frames.astype(np.int16), axis=2)).max(axis=-1)
    return bool((differences <= EQUAL).mean() >= FLAT)


class LimitNote:
    """A recorder of an answer of the bundled pair. It notes once, before the text, what the pair cannot know."""

    def __init__(self, note: Callable[[str], None], question: str, recorder: Recorder | None) -> None:
        """``recorder``: gets everything too."""
        self._note = note
        self._question = question
        self._recorder = recorder

    def began(self, recorded: Recorded) -> None:
        """Look at the frames, and note the limit where it applies."""
        if not all(is_drawn(visual.pixels) for visual in recorded.opening.visuals):
            self._note(LIMIT.format(what="this is another video"))
        elif not knows_question(self._question):
            self._note(LIMIT.format(what="questions such as 'Describe the video.'"))
        if self._recorder is not None:
            self._recorder.began(recorded)

    def handled(self, event: Event, commands: Sequence[Command]) -> None:
        """Pass it on."""
        if self._recorder is not None:
            self._recorder.handled(event, commands)

    def ended(self, answer: Answer) -> None:
        """Pass it on."""
        if self._recorder is not None:
            self._recorder.ended(answer)
