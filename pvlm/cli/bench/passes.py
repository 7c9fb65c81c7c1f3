"""``pvlm bench passes``."""

from __future__ import annotations

import argparse

from rich.console import Console
from rich.table import Table

from pvlm.bench.passes import PassReport, measure_passes
from pvlm.cli.bench.common import add_json_option, table_of
from pvlm.cli.console import quiet_logs, write_json
from pvlm.cli.options import add_engine_options, engine_settings
from pvlm.config import engine_config
from pvlm.telemetry.figures import number


def add_parser(what: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    passes = what.add_parser("passes", help="the models' passes, compared with the limit of this machine's cores")
    passes.add_argument(
        "--tokens",
        nargs="+",
        type=int,
        default=[1, 2, 4, 8, 12],
        metavar="N",
        help="tokens a pass (default: 1 2 4 8 12)",
    )
    passes.add_argument(
        "--frames", type=int, default=32, metavar="N", help="frames of noise in the prompt (default: 32)"
    )
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
        "limit: the larger of MB (weights and cache, read once) over GB/s (for a buffer of that size), and GFLOP over "
        f"{report.gflop_s:.0f} GFLOP/s (of a large float32 product); threads: {report.threads}",
        soft_wrap=True,
    )
    if options.json:
        write_json(options.json, report)
    return 0


def _table(report: PassReport) -> Table:
    return table_of(
        "passes of the decoder",
        report.passes,
        {
            "model": lambda row: row.role,
            "layers": lambda row: str(row.layers),
            "tokens": lambda row: str(row.tokens),
            "rows": lambda row: str(row.rows),
            "ms": lambda row: number(row.ms, 3),
            "MB": lambda row: number(row.read_mb, 1),
            "GFLOP": lambda row: number(row.gflop, 3),
            "GB/s": lambda row: number(row.bandwidth_gb_s, 1),
            "limit ms": lambda row: number(row.limit_ms, 3),
            "of the limit": lambda row: number(row.of_limit),
        },
        text=("model",),
    )
