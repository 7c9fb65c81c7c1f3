"""``pvlm bench adaptive``."""

from __future__ import annotations

import argparse

import anyio
from rich.console import Console
from rich.table import Table

from pvlm.bench.adaptive import SCENARIOS, AdaptiveRow, measure_adaptive
from pvlm.cli.bench.common import add_choice, add_emulation_options, add_json_option, chosen, write_rows
from pvlm.cli.console import quiet_logs
from pvlm.telemetry.figures import number


def add_parser(what: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    adaptive = what.add_parser(
        "adaptive", help="the automatic window against the best fixed ones and plain decoding, on emulated pairs"
    )
    add_choice(adaptive, "--scenarios", SCENARIOS)
    adaptive.add_argument(
        "--rounds", type=int, default=3, metavar="N", help="the ratio is the median of N (default: 3)"
    )
    add_emulation_options(adaptive, time_scale=1.0)
    add_json_option(adaptive)
    adaptive.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Exit status 1 if an answer's tokens are not those of the way that it is compared with."""
    quiet_logs(False)

    async def measure() -> list[AdaptiveRow]:
        return await measure_adaptive(
            [SCENARIOS[name] for name in chosen(options.scenarios, SCENARIOS)],
            rounds=options.rounds,
            time_scale=options.time_scale,
            transport=options.transport,
        )

    rows = anyio.run(measure)
    Console(highlight=False).print(_table(rows))
    write_rows(options.json, rows)
    return 0 if all(row.same_tokens for row in rows) else 1


def _table(rows: list[AdaptiveRow]) -> Table:
    table = Table(title="speed of the automatic window", title_justify="left", box=None, pad_edge=False)
    for column in ("scenario", "against", "ratio", "required", "rests", "same"):
        table.add_column(column, justify="left" if column in ("scenario", "against") else "right")
    for row in rows:
        against = "plain decoding" if not row.windows else f"windows of {', '.join(map(str, row.windows))}"
        table.add_row(
            row.scenario,
            against,
            f"{number(row.ratio, 3)}{'' if row.passed else ' !'}",
            f"{row.required:g}",
            str(row.rests),
            "yes" if row.same_tokens else "NO",
        )
    return table
