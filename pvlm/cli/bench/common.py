"""Options, tables and reports that the subcommands of ``pvlm bench`` share."""

from __future__ import annotations

import argparse
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol, TypeVar

import anyio
from rich.console import Console, RenderableType
from rich.table import Table

from pvlm.cli.console import ProgressDisplay, write_json
from pvlm.cli.options import DESCRIBE, add_engine_options
from pvlm.cli.plotting import add_plot_option, save_plot

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ALL = "all"
Row = TypeVar("Row")


class ComparedRow(Protocol):
    """A row that says whether its answers have the tokens that they should have."""

    @property
    def same_tokens(self) -> bool: ...


Compared = TypeVar("Compared", bound=ComparedRow)


# ---- options ------------------------------------------------------------------------------------------------------


def add_choice(parser: argparse.ArgumentParser, option: str, names: Iterable[str]) -> None:
    """An option that takes some of ``names``, or all of them; see `chosen`."""
    names = list(names)
    parser.add_argument(
        option, nargs="+", choices=[ALL, *names], default=[ALL], metavar="NAME",
        help=f"{ALL} (default), {', '.join(names)}",
    )  # fmt: skip


def chosen(given: Sequence[str], names: Iterable[str]) -> list[str]:
    """The given names, each once."""
    return list(names) if ALL in given else list(dict.fromkeys(given))


def add_rounds_option(parser: argparse.ArgumentParser, rounds: int) -> None:
    parser.add_argument(
        "--rounds", type=int, default=rounds, metavar="N", help=f"figures are medians of N rounds (default: {rounds})"
    )


def add_question_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--question", default=DESCRIBE, help=f"default: {DESCRIBE}")


def add_measurement_options(parser: argparse.ArgumentParser, *, rounds: int, max_tokens: int, plot: str) -> None:
    """What the comparisons on real clips share. ``plot``: what ``--plot`` draws."""
    add_question_option(parser)
    add_rounds_option(parser, rounds)
    parser.add_argument(
        "--max-tokens", type=int, default=max_tokens, metavar="N", help=f"tokens of each answer (default: {max_tokens})"
    )
    parser.add_argument("--note", default="", metavar="TEXT", help="a remark to show with the figures")
    add_json_option(parser)
    add_plot_option(parser, plot)
    add_engine_options(parser)


def add_emulation_options(parser: argparse.ArgumentParser, time_scale: float) -> None:
    """What the commands on emulated pairs share."""
    parser.add_argument(
        "--time-scale", type=float, default=time_scale, metavar="S",
        help=f"factor for the given times (default: {time_scale:g})",
    )  # fmt: skip
    parser.add_argument(
        "--transport", choices=["ipc", "tcp", "inproc"], default="ipc",
        help="worker processes (ipc, tcp) or threads; default: ipc",
    )  # fmt: skip
    add_json_option(parser)


def add_json_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", metavar="FILE", help="write the rows to a file")


# ---- measuring and reporting --------------------------------------------------------------------------------------


def run_measurement(measure: Callable[[Callable[[float], None]], Awaitable[list[Row]]]) -> list[Row]:
    """Run ``measure`` with a progress bar. It gets a function that takes the finished fraction, 0 to 1."""

    async def run() -> list[Row]:
        with ProgressDisplay() as shown:
            return await measure(lambda fraction: shown.update("measure", fraction))

    return anyio.run(run)


def report(
    options: argparse.Namespace,
    rows: Sequence[Compared],
    tables: Iterable[RenderableType],
    *,
    lines: Iterable[str] = (),
    draw: Callable[[Sequence[Compared]], Figure] | None = None,
) -> int:
    """Print tables and lines, and write what ``--json`` and ``--plot`` ask for.

    Returns the exit status: 1 if an answer's tokens are not those of the answer that it is compared with. Raises
    OptionError if a file cannot be written.
    """
    console = Console(highlight=False)
    for table in tables:
        console.print(table)
    for line in lines:
        console.print(line, soft_wrap=True)
    if options.json:
        write_json(options.json, rows)
    if draw is not None and options.plot:
        save_plot(options.plot, draw(rows))
    return 0 if all(row.same_tokens for row in rows) else 1


def new_table(title: str, columns: Sequence[str], text: Sequence[str] = ("method",)) -> Table:
    """A table of figures; the columns in ``text`` are aligned to the left. No cell is broken into lines."""
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
