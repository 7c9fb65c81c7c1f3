"""``pvlm bench passes``."""

from __future__ import annotations

import argparse

from rich.console import Console
from rich.table import Table

from pvlm.bench.passes import PassReport, measure_passes
from pvlm.cli.bench.common import add_json_option
from pvlm.cli.console import quiet_logs, write_json
from pvlm.cli.options import add_engine_options, engine_settings
from pvlm.config import engine_config
from pvlm.telemetry.figures import number


def add_parser(what: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    passes = what.add_parser("passes", help="how near the models' passes come to the limit of this machine's cores")
    passes.add_argument(
        "--tokens",
        nargs="+",
        type=int,
        default=[1, 2, 4, 8, 12],
        metavar="N",
        help="tokens a pass (default: 1 2 4 8 12)",
    )
    passes.add_argument("--frames", type=int, default=32, metavar="N", help="frames of the prompt, noise (default: 32)")
    passes.add_argument("--rounds", type=int, default=30, metavar="N", help="times are medians of N (default: 30)")
    add_json_option(passes)
    add_engine_options(passes)
    passes.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    quiet_logs(False)
    console = Console(highlight=False)
    report = measure_passes(
        engine_config(engine_settings(options)),
        tokens=options.tokens,
        frames=options.frames,
        rounds=options.rounds,
    )
    console.print(_table(report))
    for role, prefill_ms in report.prefill_ms.items():
        console.print(f"{role}: vision tower {report.tower_ms[role]:.0f} ms, prefill {prefill_ms:.0f} ms")
    console.print(
        "limit: the larger of MB (weights and cache, read once) over GB/s (of reading a buffer of that size), and "
        f"GFLOP over {report.gflop_s:.0f} GFLOP/s of a large float32 product; threads: {report.threads}",
        soft_wrap=True,
    )
    if options.json:
        write_json(options.json, report)
    return 0


def _table(report: PassReport) -> Table:
    table = Table(title="passes of the decoder", title_justify="left", box=None, pad_edge=False)
    columns = ("model", "layers", "tokens", "rows", "ms", "MB", "GFLOP", "GB/s", "limit ms", "of the limit")
    for column in columns:
        table.add_column(column, justify="left" if column == "model" else "right")
    for row in report.passes:
        table.add_row(
            row.role,
            str(row.layers),
            str(row.tokens),
            str(row.rows),
            number(row.ms, 3),
            number(row.read_mb, 1),
            number(row.gflop, 3),
            number(row.bandwidth_gb_s, 1),
            number(row.limit_ms, 3),
            number(row.of_limit),
        )
    return table
