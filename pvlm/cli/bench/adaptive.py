"""``pvlm bench adaptive``."""

from __future__ import annotations

import argparse
from pathlib import Path

import anyio
import msgspec
from rich.console import Console
from rich.table import Table

from pvlm.bench.adaptive import SCENARIOS, AdaptiveRow, measure_adaptive
from pvlm.cli.console import number, quiet_logs

ALL = "all"


def add_parser(what: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    adaptive = what.add_parser(
        "adaptive", help="the automatic window against the best fixed ones and plain decoding, on emulated pairs"
    )
    adaptive.add_argument(
        "--scenarios", nargs="+", choices=[ALL, *SCENARIOS], default=[ALL], metavar="NAME",
        help=f"{ALL} (default), {', '.join(SCENARIOS)}",
    )  # fmt: skip
    adaptive.add_argument(
        "--rounds", type=int, default=3, metavar="N", help="the ratio is the median of N (default: 3)"
    )
    adaptive.add_argument(
        "--time-scale", type=float, default=1.0, metavar="S", help="multiplies the times (default: 1)"
    )
    adaptive.add_argument(
        "--transport", choices=["ipc", "tcp", "inproc"], default="ipc",
        help="worker processes (ipc, tcp) or threads; default: ipc",
    )  # fmt: skip
    adaptive.add_argument("--json", metavar="FILE", help="write the rows to a file")
    adaptive.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Exit status 1 if an answer's tokens are not those of the way that it is compared with."""
    quiet_logs(False)
    names = list(SCENARIOS) if ALL in options.scenarios else list(dict.fromkeys(options.scenarios))

    async def measure() -> list[AdaptiveRow]:
        return await measure_adaptive(
            [SCENARIOS[name] for name in names],
            rounds=options.rounds,
            time_scale=options.time_scale,
            transport=options.transport,
        )

    rows = anyio.run(measure)
    Console(highlight=False).print(_table(rows))
    if options.json:
        Path(options.json).write_bytes(msgspec.json.format(msgspec.json.encode(rows), indent=2) + b"\n")
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
