"""Output of the commands on a terminal: progress, and the table of an answer's figures."""

from __future__ import annotations

import sys
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.table import Table

from pvlm.config import EngineConfig
from pvlm.errors import OptionError
from pvlm.log import configure_logging
from pvlm.results import AnswerStats
from pvlm.telemetry.figures import figures
from pvlm.workers.port import worker_command
from pvlm_protocols.backend import Role

ROLES: tuple[Role, ...] = ("target", "draft")


def quiet_logs(verbose: bool) -> None:
    """Show the library's log on standard error: errors, or everything with ``verbose``."""
    configure_logging("debug" if verbose else "error")


class ProgressDisplay:
    """Progress bars of loading and long prefills, on standard error if it is a terminal."""

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
        """As `pvlm.telemetry.observers.OnProgress`."""
        if fraction >= 1:
            if what in self._tasks:
                self._progress.remove_task(self._tasks.pop(what))
            return
        if what not in self._tasks:
            self._tasks[what] = self._progress.add_task(what, total=1.0)
        self._progress.update(self._tasks[what], completed=fraction)


def tell_of_remote_workers(config: EngineConfig) -> None:
    """Print on standard error which workers the engine waits for, and the command that starts each."""
    for role in ROLES:
        if config.listen(role) is not None:
            print(f"waiting for the {role}; run on its host: {worker_command(role, config)}", file=sys.stderr)


def write_file(path: str, content: bytes) -> None:
    """Write a file. Raises OptionError if that fails."""
    try:
        Path(path).write_bytes(content)
    except OSError as error:
        raise OptionError(f"cannot write '{path}': {error.strerror}") from None


def write_json(path: str, value: Any) -> None:
    """Write indented JSON that ends with a newline. Raises OptionError if that fails."""
    write_file(path, msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n")


def figures_table(stats: AnswerStats) -> Table:
    """The figures of one answer."""
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="dim")
    table.add_column()
    for name, figure in figures(stats):
        table.add_row(name, escape(figure))
    return table
