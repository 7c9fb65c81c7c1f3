"""What the subcommands of ``pvlm bench`` share."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence

import msgspec
from rich.table import Table

from pvlm.cli.console import write_json

ALL = "all"


def add_choice(parser: argparse.ArgumentParser, option: str, names: Iterable[str]) -> None:
    """An option that takes some of ``names``, or all of them; see `chosen`."""
    names = list(names)
    parser.add_argument(
        option, nargs="+", choices=[ALL, *names], default=[ALL], metavar="NAME",
        help=f"{ALL} (default), {', '.join(names)}",
    )  # fmt: skip


def chosen(given: Sequence[str], names: Iterable[str]) -> list[str]:
    """The names that were given, each once."""
    return list(names) if ALL in given else list(dict.fromkeys(given))


def add_emulation_options(parser: argparse.ArgumentParser, time_scale: float) -> None:
    parser.add_argument(
        "--time-scale", type=float, default=time_scale, metavar="S",
        help=f"multiplies the given times (default: {time_scale:g})",
    )  # fmt: skip
    parser.add_argument(
        "--transport", choices=["ipc", "tcp", "inproc"], default="ipc",
        help="worker processes (ipc, tcp) or threads; default: ipc",
    )  # fmt: skip


def add_json_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", metavar="FILE", help="write the rows to a file")


def new_table(title: str, columns: Sequence[str]) -> Table:
    """A table of figures; the column ``method`` holds text. No cell is broken into lines."""
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, padding=(0, 1, 0, 0))
    for column in columns:
        table.add_column(column, justify="left" if column == "method" else "right", no_wrap=True)
    return table


def add_note_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--note", default="", metavar="TEXT", help="a remark to show with the figures")


def write_rows(file: str | None, rows: Sequence[msgspec.Struct]) -> None:
    """As a JSON list, if a file was given. Raises OptionError if it cannot be written."""
    if file:
        write_json(file, rows)
