"""Options, tables and reports that the subcommands of ``pvlm bench`` share."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Protocol, TypeVar

import typer

from pvlm.cli.commands import Options, option
from pvlm.cli.interruption import run_async
from pvlm.cli.names import names
from pvlm.cli.options import DESCRIBE, JsonFile, PlotFile, Question, Transport
from pvlm.cli.options import Output as Verbosity
from pvlm.cli.plotting import add_caption, save_plot

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.console import RenderableType
    from rich.table import Table

ALL = "all"
Row = TypeVar("Row")


class ComparedRow(Protocol):
    """A row that says whether its answers have the tokens that they should have."""

    @property
    def same_tokens(self) -> bool: ...


Compared = TypeVar("Compared", bound=ComparedRow)


# ---- options ------------------------------------------------------------------------------------------------------


def choice(name: str, kind: str) -> Any:
    """An option that takes some of the names of a kind, or all of them. ``kind``: see `pvlm.cli.names.names`."""

    def check(given: list[str] | None) -> list[str] | None:
        for one in given or []:
            if one not in (known := [ALL, *names(kind)]):
                raise typer.BadParameter(f"invalid choice: '{one}' (choose from {', '.join(known)})")
        return given

    return option(
        name,
        metavar="NAME...",
        help=f"{ALL} (default), {{{kind}}}",
        kind=kind,
        callback=check,
    )


def chosen(given: Sequence[str] | None, known: Iterable[str]) -> list[str]:
    """The given names, each once; all names if none or `ALL` is given."""
    return list(known) if not given or ALL in given else list(dict.fromkeys(given))


def rounds_option(help: str = "figures are medians of N rounds") -> Any:
    """The option ``--rounds``."""
    return option("--rounds", metavar="N", help=help, show_default=True)


MaxTokens = Annotated[int, option("--max-tokens", metavar="N", help="tokens of each answer", show_default=True)]
BundledBackend = Annotated[
    str | None,
    option(
        "--backend",
        metavar="NAME",
        help="what runs the bundled pair: {backends} (default: the engine's)",
        kind="backends",
    ),
]
TimeScale = Annotated[float, option("--time-scale", metavar="S", help="factor for the given times", show_default=True)]


@dataclass(frozen=True, kw_only=True)
class Measurement(Options):
    """What the comparisons on real clips share."""

    question: Question = DESCRIBE
    note: Annotated[str, option("--note", metavar="TEXT", help="a remark to show with the figures")] = ""
    json: JsonFile = None
    plot: PlotFile = None


@dataclass(frozen=True, kw_only=True)
class Emulation(Options):
    """What the commands on emulated pairs share."""

    transport: Annotated[
        Transport, option("--transport", help="worker processes (ipc, tcp) or threads", show_default=True)
    ] = "ipc"
    json: JsonFile = None


# ---- measuring and reporting --------------------------------------------------------------------------------------


def run_measurement(
    measure: Callable[[Callable[[float], None]], Awaitable[list[Row]]], verbosity: Verbosity
) -> list[Row]:
    """Run ``measure`` with a progress bar. It gets a function that takes the finished fraction, 0 to 1."""
    from pvlm.cli.console import configure_logs
    from pvlm.cli.progress import ProgressDisplay

    configure_logs(verbosity.verbose)

    async def run() -> list[Row]:
        with ProgressDisplay(quiet=verbosity.quiet or verbosity.verbose) as shown:
            return await measure(lambda fraction: shown.update("measure", fraction))

    return run_async(run)


def report(
    rows: Sequence[Compared],
    tables: Iterable[RenderableType],
    *,
    json: str | None,
    plot: str | None = None,
    lines: Iterable[str] = (),
    draw: Callable[[Sequence[Compared]], Figure] | None = None,
    caption: Iterable[str] = (),
) -> int:
    """Print tables and lines, and write the files ``json`` and ``plot``. ``caption``: lines below the picture.

    Returns the exit status: 1 if an answer's tokens are not those of the answer that it is compared with. Raises
    OptionError if a file cannot be written.
    """
    from pvlm.cli.console import ResultConsole, write_json

    console = ResultConsole()
    for table in tables:
        console.print(table)
    for line in lines:
        console.print(line, soft_wrap=True, markup=False)
    if json:
        write_json(json, rows)
    if draw is not None and plot:
        figure = draw(rows)
        add_caption(figure, list(caption))
        save_plot(plot, figure)
    return 0 if all(row.same_tokens for row in rows) else 1


def new_table(title: str, columns: Sequence[str], text: Sequence[str] = ("method",)) -> Table:
    """A table of figures; the columns in ``text`` are aligned to the left. No cell is broken into lines."""
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=None, pad_edge=False, padding=(0, 1, 0, 0))
    for column in columns:
        table.add_column(column, justify="left" if column in text else "right", no_wrap=True)
    return table


def table_of(
    title: str, rows: Iterable[Row], columns: Mapping[str, Callable[[Row], str]], text: Sequence[str] = ("method",)
) -> Table:
    """`new_table` with a line for each row. ``columns``: a cell's text from the row, by title."""
    table = new_table(title, list(columns), text)
    for row in rows:
        table.add_row(*(cell(row) for cell in columns.values()))
    return table


def same(row: ComparedRow) -> str:
    """The cell that says whether the tokens are the same."""
    return "yes" if row.same_tokens else "NO"
