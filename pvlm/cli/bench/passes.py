"""``pvlm bench passes``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from pvlm.cli.bench.common import rounds_option, table_of
from pvlm.cli.commands import command, option
from pvlm.cli.interruption import closing_on_interrupt
from pvlm.cli.options import Checkpoints, JsonFile, Output, PruneRatio, Threads, settings
from pvlm.telemetry.figures import number

if TYPE_CHECKING:
    from rich.table import Table

    from pvlm.bench.passes import PassReport

TOKENS = (1, 2, 4, 8, 12)


def register(group: typer.Typer) -> None:
    command(group, "passes")(passes)


def passes(
    *,
    tokens: Annotated[
        list[int] | None, option("--tokens", metavar="N...", help="tokens a pass (default: 1 2 4 8 12)")
    ] = None,
    frames: Annotated[
        int, option("--frames", metavar="N", help="frames of noise in the prompt", show_default=True)
    ] = 32,
    rounds: Annotated[int, rounds_option("times are medians of N")] = 30,
    json: JsonFile = None,
    output: Output,
    checkpoints: Checkpoints,
    threads: Threads = None,
    prune_ratio: PruneRatio = None,
) -> int:
    """Measure the models' passes, compared with the limit of this machine's cores."""
    from pvlm.bench.passes import measure_passes
    from pvlm.cli.console import ResultConsole, configure_logs, write_json
    from pvlm.cli.progress import ProgressDisplay
    from pvlm.config import engine_config

    configure_logs(output.verbose)
    console = ResultConsole()
    config = engine_config(settings(checkpoints, threads=threads, prune_ratio=prune_ratio))
    with closing_on_interrupt(), ProgressDisplay(quiet=output.quiet or output.verbose):
        report = measure_passes(config, tokens=tokens or TOKENS, frames=frames, rounds=rounds)
    console.print(_table(report))
    for role, prefill_ms in report.prefill_ms.items():
        console.print(f"{role}: vision tower {report.tower_ms[role]:.0f} ms, prefill {prefill_ms:.0f} ms")
    console.print(
        "limit: the larger of MB (weights and cache, read once) over GB/s (for a buffer of that size), and GFLOP over "
        f"{report.gflop_s:.0f} GFLOP/s (of a large float32 product); threads: {report.threads}",
        soft_wrap=True,
    )
    if json:
        write_json(json, report)
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
