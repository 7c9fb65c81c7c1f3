"""Recording one answer, and writing what was recorded."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pvlm.coordination.events import Command, Event
from pvlm.errors import EngineStateError, OptionError
from pvlm.results import Answer
from pvlm.telemetry.recorder import Recorded


@dataclass(frozen=True)
class Handled:
    """An event that the coordinator took in, when (seconds of the monotonic clock), and the commands it gave."""

    at_s: float
    event: Event
    commands: tuple[Command, ...]


@dataclass(frozen=True, eq=False)
class Recording:
    """One answer: what it was about, when the session was opened, what happened, and the answer if it was completed."""

    subject: Recorded
    began_s: float
    handled: Sequence[Handled]
    answer: Answer | None


class Trace:
    """Records one answer, and writes what draft and target did, as pictures::

        trace = Trace()
        answer = await engine.answer("clip.mp4", "What happens in the video?", trace=trace)
        trace.write("trace")

    A `pvlm.telemetry.recorder.Recorder`. It keeps the messages and the resized frames. They can be written as often
    as wanted, also where the answer failed or was left early.
    """

    def __init__(self) -> None:
        self._subject: Recorded | None = None
        self._began_s = 0.0
        self._handled: list[Handled] = []
        self._answer: Answer | None = None

    # ---- as a recorder --------------------------------------------------------------------------------------------

    def began(self, recorded: Recorded) -> None:
        """Raises EngineStateError if it has recorded an answer already."""
        if self._subject is not None:
            raise EngineStateError("this trace holds an answer already: make another Trace() for each answer")
        self._subject = recorded
        self._began_s = time.monotonic()

    def handled(self, event: Event, commands: Sequence[Command]) -> None:
        """The coordinator has handled an event."""
        self._handled.append(Handled(time.monotonic(), event, tuple(commands)))

    def ended(self, answer: Answer) -> None:
        """The answer is complete."""
        self._answer = answer

    # ---- what was recorded ----------------------------------------------------------------------------------------

    @property
    def recorded(self) -> bool:
        """Has a session been opened?"""
        return self._subject is not None

    def recording(self) -> Recording:
        """What has been recorded so far. Raises EngineStateError if nothing has."""
        if self._subject is None:
            raise EngineStateError("this trace is empty: give it to engine.answer(..., trace=trace) first")
        return Recording(self._subject, self._began_s, tuple(self._handled), self._answer)

    def write(self, directory: str | os.PathLike[str]) -> list[Path]:
        """Write ``timeline.html``, ``timeline.json`` (Chrome's trace format) and ``frames.png``; return their paths.

        The directory is made if there is none; files of these names in it are replaced. Raises OptionError where they
        cannot be written, and EngineStateError if nothing has been recorded.
        """
        from pvlm.trace.chrome import chrome_trace
        from pvlm.trace.page import page
        from pvlm.trace.sheet import frame_sheet
        from pvlm.trace.timeline import timeline

        recording = self.recording()
        folder = make_directory(directory)
        line = timeline(recording)
        contents: dict[str, Callable[[], bytes]] = {
            "timeline.html": lambda: page(recording, line),
            "timeline.json": lambda: chrome_trace(recording, line),
            "frames.png": lambda: frame_sheet(recording),
        }
        written = []
        for name, content in contents.items():
            path = folder / name
            try:
                path.write_bytes(content())
            except OSError as error:
                raise OptionError(f"cannot write the trace '{path}': {error.strerror}") from None
            written.append(path)
        return written


def make_directory(directory: str | os.PathLike[str]) -> Path:
    """Make a directory for a trace, if there is none. Raises OptionError where nothing can be written to it."""
    folder = Path(directory)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OptionError(f"cannot write a trace to the directory '{folder}': {error.strerror}") from None
    return folder
