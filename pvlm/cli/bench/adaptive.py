"""``pvlm bench adaptive``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import anyio
from rich.table import Table

from pvlm.bench.adaptive import SCENARIOS, AdaptiveRow, measure_adaptive
from pvlm.cli.bench.common import (
    add_choice,
    add_emulation_options,
    add_rounds_option,
    chosen,
    report,
    same,
    table_of,
)
from pvlm.cli.console import quiet_logs
from pvlm.telemetry.figures import number


def add_parser(what: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    adaptive = what.add_parser(
        "adaptive", help="the automatic window against the best fixed ones and plain decoding, on emulated pairs"
    )
    add_choice(adaptive, "--scenarios", SCENARIOS)
    add_rounds_option(adaptive, 3)
    add_emulation_options(adaptive, time_scale=1.0)
    adaptive.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Exit status 1 if an answer's tokens are not those of the decoding that it is compared with."""
    quiet_logs(False)

    async def measure() -> list[AdaptiveRow]:
        return await measure_adaptive(
            [SCENARIOS[name] for name in chosen(options.scenarios, SCENARIOS)],
            rounds=options.rounds,
            time_scale=options.time_scale,
            transport=options.transport,
        )

    rows = anyio.run(measure)
    return report(options, rows, [_table(rows)])


def _table(rows: Sequence[AdaptiveRow]) -> Table:
    return table_of(
        "speed of the automatic window",
        rows,
        {
            "scenario": lambda row: row.scenario,
            "against": lambda row: (
                f"windows of {', '.join(map(str, row.windows))}" if row.windows else "plain decoding"
            ),
            "ratio": lambda row: f"{number(row.ratio, 3)}{'' if row.passed else ' !'}",
            "required": lambda row: f"{row.required:g}",
            "rests": lambda row: str(row.rests),
            "same": same,
        },
        text=("scenario", "against"),
    )
