"""Progress of what takes long, on standard error if it is a terminal. It is gone before the result is printed."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, Task, TaskID, TextColumn
from rich.text import Text

NAMES = {
    "load target": "loading the target",
    "load draft": "loading the draft",
    "read video": "reading the video",
    "prefill": "prefill",
    "answer": "answering",
    "measure": "measuring",
}
"""Steps of `pvlm.engine.OnProgress`, in words."""
SHORTEST_S = 1.0
"""An end that is nearer is not estimated."""
NARROW = 72
"""Columns of a terminal that has room for a short bar only."""


class ProgressDisplay:
    """A context manager with a bar for each step that runs. Between steps a bar of unknown length moves.

    `pause` removes the bars from the terminal, for text that is written meanwhile; `resume` shows them again.
    """

    def __init__(self, quiet: bool = False) -> None:
        console = Console(stderr=True, highlight=False)
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=10 if console.width < NARROW else 20),
            _Share(),
            _Remaining(),
            console=console,
            transient=True,
            disable=quiet or not console.is_interactive,
            redirect_stdout=False,  # the text of an answer is written as it is
            redirect_stderr=True,  # a line of the log stands above the bars
        )
        self._tasks: dict[str, TaskID] = {}
        self._idle = self._progress.add_task("starting", total=None)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._progress.stop()

    def pause(self) -> None:
        """Remove the bars from the terminal."""
        self._progress.stop()

    def resume(self) -> None:
        """Show the bars of steps that run."""
        self._progress.start()

    def note(self, text: str) -> None:
        """Write a line to standard error, above the bars."""
        self._progress.console.print(text, markup=False, emoji=False, soft_wrap=True)

    def update(self, what: str, fraction: float) -> None:
        """As `pvlm.engine.OnProgress`."""
        was_idle = not self._tasks
        if fraction < 1:
            if what not in self._tasks:
                self._tasks[what] = self._progress.add_task(NAMES.get(what, what), total=1.0)
            self._progress.update(self._tasks[what], completed=fraction)
        elif what in self._tasks:
            self._progress.remove_task(self._tasks.pop(what))
        idle = not self._tasks
        if idle and not was_idle:
            self._progress.reset(self._idle)  # it shows the time since the last step
        self._progress.update(self._idle, description="working", visible=idle)


class _Share(ProgressColumn):
    """The finished share of a step with a known end."""

    def render(self, task: Task) -> Text:
        return Text("" if task.total is None else f"{task.percentage:>3.0f}%")


class _Remaining(ProgressColumn):
    """The estimated time to the end of a step; the elapsed time without an estimate."""

    max_refresh = 0.5

    def render(self, task: Task) -> Text:
        if task.total is not None and task.time_remaining is not None and task.time_remaining > SHORTEST_S:
            return Text(f"about {_duration(task.time_remaining)} left")
        elapsed = task.elapsed or 0.0
        return Text("" if elapsed < SHORTEST_S else _duration(elapsed))


def _duration(seconds: float) -> str:
    whole = round(seconds)
    return f"{whole} s" if whole < 120 else f"{whole // 60} min"
