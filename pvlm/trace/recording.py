"""The record of one answer: its events and commands, with their times."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from pvlm.coordination.events import Command, Event
from pvlm.results import Answer
from pvlm.telemetry.recorder import Recorded


@dataclass(frozen=True)
class Handled:
    """An event that the coordinator took, when (seconds of the monotonic clock), and the commands that it gave."""

    at_s: float
    event: Event
    commands: tuple[Command, ...]


@dataclass(frozen=True, eq=False)
class Recording:
    """One answer. ``began_s``: when its session was opened, of the monotonic clock; ``date``: the same in local time;
    ``answer``: None if it was not completed.
    """

    subject: Recorded
    began_s: float
    date: datetime
    handled: Sequence[Handled]
    answer: Answer | None
