"""Output of the commands: the result on standard output; progress, notes and figures on standard error."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from rich.console import Console

from pvlm.cli.streams import failed
from pvlm.errors import OptionError

if TYPE_CHECKING:
    from rich.table import Table

    from pvlm.config import EngineConfig
    from pvlm.results import AnswerStats
    from pvlm_protocols.backend import Role

ROLES: tuple[Role, ...] = ("target", "draft")


class ResultConsole(Console):
    """A console on standard output. A failed write raises OutputError."""

    def __init__(self) -> None:
        super().__init__(highlight=False)

    def print(self, *objects: Any, **how: Any) -> None:
        """Print objects as rich does."""
        try:
            super().print(*objects, **how)
        except OSError as error:
            raise failed(error) from None

    def on_broken_pipe(self) -> NoReturn:
        """Raise OutputError: the reader has left."""
        raise failed(BrokenPipeError())


def note(text: str) -> None:
    """Write a line to standard error."""
    print(text, file=sys.stderr)


def notes() -> Console:
    """A console on standard error."""
    return Console(stderr=True, highlight=False)


def configure_logs(verbose: bool) -> None:
    """Show the library's log on standard error: errors, or everything with ``verbose``."""
    from pvlm.log import configure_logging

    configure_logging("debug" if verbose else "error")


def note_remote_workers(config: EngineConfig, note: Callable[[str], None]) -> None:
    """Say which workers the engine waits for, and the command that starts each."""
    from pvlm.workers.port import worker_command

    for role in ROLES:
        if config.listen(role) is not None:
            note(f"waiting for the {role}; run on its host: {worker_command(role, config)}")


def write_file(path: str, content: bytes) -> None:
    """Write a file. Raises OptionError if that fails."""
    try:
        Path(path).write_bytes(content)
    except OSError as error:
        raise OptionError(f"cannot write '{path}': {error.strerror}") from None


def write_json(path: str, value: Any) -> None:
    """Write indented JSON that ends with a newline. Raises OptionError if that fails."""
    import msgspec

    write_file(path, msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n")


def figures_table(stats: AnswerStats) -> Table:
    """The figures of one answer."""
    from rich.markup import escape
    from rich.table import Table

    from pvlm.telemetry.figures import figures

    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column()
    for name, figure in figures(stats):
        table.add_row(name, escape(figure))
    return table
