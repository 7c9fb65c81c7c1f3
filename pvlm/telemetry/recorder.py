"""Where an answer can be watched from: what a `Recorder` is told. `pvlm.trace` has one.

Nothing is told, and nothing costs anything, where none is given.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from pvlm.coordination.events import Command, Event
from pvlm.errors import PvlmError
from pvlm.results import Answer
from pvlm_protocols.backend import ModelInfo, Processor, Role
from pvlm_protocols.messages import Open


@dataclass(frozen=True)
class Circumstances:
    """What surrounds an answer.

    ``video``: names of the videos and images in words, empty without one. ``settings``: of the engine and the answer,
    where they differ from the defaults. ``before_s``: seconds before the session, by fields of `AnswerStats`
    (``startup_s``, ``waiting_s``, ``video_s``).
    """

    video: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    before_s: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Recorded:
    """What an answer is about.

    ``opening``: how the session is opened at the target; its ``visuals`` hold the resized frames. ``frame_indices``:
    for each video and image, the numbers of its frames in the source.
    """

    opening: Open
    with_draft: bool
    frame_indices: tuple[tuple[int, ...], ...]
    processor: Processor
    models: Mapping[Role, ModelInfo]
    circumstances: Circumstances = Circumstances()


class Recorder(Protocol):
    """Told what goes on in one answer, as it happens. Must return at once: draft and target may be waiting.

    An error is counted and logged once, and does no harm to the answer.
    """

    def began(self, recorded: Recorded) -> None:
        """The session is about to be opened. A `PvlmError` refuses the answer, and reaches the caller."""

    def handled(self, event: Event, commands: Sequence[Command]) -> None:
        """The coordinator took in an event and gave these commands, which are carried out next."""

    def ended(self, answer: Answer) -> None:
        """The answer is complete; not told where it failed or the caller left."""


class GuardedRecorder:
    """A `Recorder` whose errors end here, but for a `PvlmError` by which `began` refuses the answer."""

    def __init__(self, call: Callable[..., None], recorder: Recorder) -> None:
        """``call``: calls a function, and contains its error."""
        self._call = call
        self._recorder = recorder

    def began(self, recorded: Recorded) -> None:
        refusals: list[PvlmError] = []

        def begin() -> None:
            try:
                self._recorder.began(recorded)
            except PvlmError as error:
                refusals.append(error)

        self._call(begin)
        for refusal in refusals:
            raise refusal

    def handled(self, event: Event, commands: Sequence[Command]) -> None:
        self._call(self._recorder.handled, event, commands)

    def ended(self, answer: Answer) -> None:
        self._call(self._recorder.ended, answer)
