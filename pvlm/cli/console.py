"""What the commands show on a terminal: progress, and the table of an answer's figures."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec
import structlog
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.table import Table

from pvlm.errors import OptionError
from pvlm.results import AnswerStats


def quiet_logs(verbose: bool) -> None:
    """Show the library's log on standard error: warnings, or with ``verbose`` everything."""
    level = logging.DEBUG if verbose else logging.ERROR
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )


class ProgressDisplay:
    """Bars for loading and long prefills, on standard error, and only if that is a terminal."""

    def __init__(self) -> None:
        console = Console(stderr=True)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._progress.stop()

    def update(self, what: str, fraction: float) -> None:
        """As `pvlm.engine.OnProgress`."""
        if fraction >= 1:
            if what in self._tasks:
                self._progress.remove_task(self._tasks.pop(what))
            return
        if what not in self._tasks:
            self._tasks[what] = self._progress.add_task(what, total=1.0)
        self._progress.update(self._tasks[what], completed=fraction)


def write_file(path: str, content: bytes) -> None:
    """Raises OptionError if it cannot be written."""
    try:
        Path(path).write_bytes(content)
    except OSError as error:
        raise OptionError(f"cannot write '{path}': {error.strerror}") from None


def write_json(path: str, value: Any) -> None:
    """Indented, with a line's end. Raises OptionError if it cannot be written."""
    write_file(path, msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n")


def number(value: float | None, digits: int = 2, unit: str = "") -> str:
    """A figure, or a dash where nothing was measured."""
    return "–" if value is None else f"{value:.{digits}f}{unit}"


def figures(stats: AnswerStats) -> Table:
    """The figures of one answer."""
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="dim")
    table.add_column()
    window = sum(stats.windows) / len(stats.windows) if stats.windows else None
    rows = [
        ("method", stats.method),
        ("new tokens", f"{stats.new_tokens} ({number(stats.tokens_per_second, 1)} a second)"),
        ("prefill / decode", f"{stats.prefill_s:.3f} s / {stats.decode_s:.3f} s"),
        ("first token after", f"{stats.time_to_first_token_s:.3f} s (reading the video: {stats.video_s:.3f} s)"),
        ("target passes", f"{stats.target_passes} of {number(stats.target_pass_ms, 2, ' ms')}"),
    ]
    if stats.method != "ar":
        rows += [
            ("drafted tokens", f"{stats.drafted_tokens} of {number(stats.draft_token_ms, 2, ' ms')}"),
            ("acceptance rate", f"{number(stats.acceptance_rate)} of the tokens that were tested"),
            ("mean accepted length", f"{number(stats.mean_accepted_length, 1)} tokens a rejection"),
            ("window (γ), mean", number(window, 1)),
            ("rollbacks", str(stats.rollbacks)),
        ]
    rows.append(("video tokens", f"{stats.video_tokens}, the draft sees {stats.kept_video_tokens} ({stats.prune})"))
    for row in rows:
        table.add_row(*row)
    return table
