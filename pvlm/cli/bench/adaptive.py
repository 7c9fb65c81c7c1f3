"""``pvlm bench adaptive``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from pvlm.cli.bench.common import (
    Emulation,
    TimeScale,
    choice,
    chosen,
    report,
    rounds_option,
    run_measurement,
    same,
    table_of,
)
from pvlm.cli.commands import command
from pvlm.cli.options import Output
from pvlm.telemetry.figures import number

if TYPE_CHECKING:
    from rich.table import Table

    from pvlm.bench.adaptive import AdaptiveRow


def register(group: typer.Typer) -> None:
    command(group, "adaptive")(adaptive)


def adaptive(
    *,
    scenarios: Annotated[list[str] | None, choice("--scenarios", "scenarios")] = None,
    rounds: Annotated[int, rounds_option()] = 3,
    time_scale: TimeScale = 1.0,
    emulation: Emulation,
    output: Output,
) -> int:
    """Compare the automatic window with the best fixed ones and plain decoding, on emulated pairs.

    Exit status 1 if an answer's tokens are not those of the decoding that it is compared with.
    """
    from pvlm.bench.adaptive import SCENARIOS, measure_adaptive

    rows = run_measurement(
        lambda _: measure_adaptive(
            [SCENARIOS[name] for name in chosen(scenarios, SCENARIOS)],
            rounds=rounds,
            time_scale=time_scale,
            transport=emulation.transport,
        ),
        output,
    )
    return report(rows, [_table(rows)], json=emulation.json)


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
