"""``pvlm bench pruning``."""

from __future__ import annotations

import argparse

import anyio
from rich.console import Console
from rich.table import Table

from pvlm.bench.pruning import PruningRow, measure_pruning
from pvlm.cli.bench.common import add_json_option, write_rows
from pvlm.cli.console import quiet_logs
from pvlm.cli.options import DESCRIBE, add_engine_options, engine_settings
from pvlm.config import engine_config
from pvlm.figures import number


def add_parser(what: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    pruning = what.add_parser("pruning", help="acceptance for each pruning method, ratio and position rule")
    pruning.add_argument("videos", nargs="+", metavar="VIDEO")
    pruning.add_argument("--question", default=DESCRIBE, help=f"default: {DESCRIBE}")
    pruning.add_argument("--methods", nargs="+", default=["uv", "uniform", "random"], metavar="NAME")
    pruning.add_argument("--ratios", nargs="+", type=float, default=[0.0, 0.5, 0.9], metavar="R")
    add_json_option(pruning)
    add_engine_options(pruning)
    pruning.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    quiet_logs(False)
    console = Console(highlight=False)

    async def measure() -> list[PruningRow]:
        return await measure_pruning(
            engine_config(engine_settings(options)),
            options.videos,
            options.question,
            methods=options.methods,
            ratios=options.ratios,
        )

    rows = anyio.run(measure)
    console.print(_table(rows))
    write_rows(options.json, rows)
    return 0 if all(row.same_tokens for row in rows) else 1


def _table(rows: list[PruningRow]) -> Table:
    table = Table(
        title=f"{rows[0].clips} clips, {rows[0].tokens} tokens", title_justify="left", box=None, pad_edge=False
    )
    for column in ("pruning", "ratio", "positions", "kept", "acceptance rate", "mean accepted length", "same tokens"):
        table.add_column(column, justify="left" if column in ("pruning", "positions") else "right")
    for row in rows:
        table.add_row(
            row.prune,
            f"{row.ratio:g}",
            row.positions,
            f"{row.kept:.0%}",
            number(row.acceptance_rate, 3),
            number(row.mean_accepted_length, 1),
            "yes" if row.same_tokens else "NO",
        )
    return table
