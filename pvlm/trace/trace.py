"""The trace of one answer: it records, and writes pictures."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from pvlm.coordination.events import Command, Event
from pvlm.errors import EngineStateError, OptionError
from pvlm.results import Answer
from pvlm.telemetry.recorder import Recorded
from pvlm.trace.recording import Handled, Recording


class Trace:
    """Records one answer, and writes pictures of what draft and target did::

        trace = Trace()
        answer = await engine.answer("clip.mp4", "What happens in the video?", trace=trace)
        trace.write("trace")

    A `pvlm.telemetry.recorder.Recorder`. It keeps the messages and the resized frames. `write` may be called often, and
    also for an answer that failed or was left early.
    """

    def __init__(self) -> None:
        self._subject: Recorded | None = None
        self._began_s = 0.0
        self._date = datetime.now().astimezone()
        self._handled: list[Handled] = []
        self._answer: Answer | None = None

    # ---- as a recorder --------------------------------------------------------------------------------------------

    def began(self, recorded: Recorded) -> None:
        """Begin the record. Raises EngineStateError if this trace holds an answer already."""
        if self._subject is not None:
            raise EngineStateError("this trace holds an answer already: make another Trace() for each answer")
        self._subject = recorded
        self._began_s = time.monotonic()
        self._date = datetime.now().astimezone()

    def handled(self, event: Event, commands: Sequence[Command]) -> None:
        """Keep an event that the coordinator has handled, with its time and the resulting commands."""
        self._handled.append(Handled(time.monotonic(), event, tuple(commands)))

    def ended(self, answer: Answer) -> None:
        """Keep the complete answer."""
        self._answer = answer

    # ---- the record ----------------------------------------------------------------------------------------------

    @property
    def recorded(self) -> bool:
        """Whether a session has been opened."""
        return self._subject is not None

    def recording(self) -> Recording:
        """The record so far. Raises EngineStateError if it is empty."""
        if self._subject is None:
            raise EngineStateError("this trace is empty: give it to engine.answer(..., trace=trace) first")
        return Recording(self._subject, self._began_s, self._date, tuple(self._handled), self._answer)

    def write(self, directory: str | os.PathLike[str]) -> list[Path]:
        """Write ``timeline.html``, ``timeline.json`` (Chrome's trace format) and, for a video, ``frames.png``. Return
        their paths.

        Makes the directory if it is missing, and replaces files of these names. Raises OptionError if a file cannot be
        written, and EngineStateError if nothing has been recorded.
        """
        # Imported here, since a program that records may never write a picture, which needs Pillow.
        from pvlm.trace.chrome import chrome_trace
        from pvlm.trace.page import page
        from pvlm.trace.sheet import frame_sheet
        from pvlm.trace.timeline import timeline

        recording = self.recording()
        folder = make_directory(directory)
        line = timeline(recording)
        sheet = None if not recording.subject.opening.visuals else frame_sheet(recording)
        contents = {"timeline.html": page(recording, line, sheet), "timeline.json": chrome_trace(recording, line)}
        if sheet is not None:
            contents["frames.png"] = sheet
        written = []
        for name, content in contents.items():
            path = folder / name
            try:
                path.write_bytes(content)
            except OSError as error:
                raise OptionError(f"cannot write the trace '{path}': {error.strerror or error}") from None
            written.append(path)
        return written


def make_directory(directory: str | os.PathLike[str]) -> Path:
    """Make a directory for a trace if it is missing. Raises OptionError if it is not writable."""
    folder = Path(directory)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OptionError(f"cannot write a trace to the directory '{folder}': {error.strerror or error}") from None
    return folder
