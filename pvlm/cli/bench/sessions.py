"""``pvlm bench sessions``."""

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
from pvlm.cli.commands import command, option
from pvlm.cli.options import Output
from pvlm.telemetry.figures import number

if TYPE_CHECKING:
    from rich.table import Table

    from pvlm.bench.sessions import SessionsRow


def register(group: typer.Typer) -> None:
    command(group, "sessions")(sessions)


def sessions(
    *,
    pairs: Annotated[list[str] | None, choice("--pairs", "all_pairs")] = None,
    at_once: Annotated[
        list[int] | None, option("--sessions", metavar="N...", help="answers at once (default: 1 2 4 8)")
    ] = None,
    tokens: Annotated[
        int, option("--tokens", metavar="N", help="tokens of each emulated answer", show_default=True)
    ] = 128,
    rounds: Annotated[int, rounds_option()] = 3,
    time_scale: TimeScale = 0.1,
    emulation: Emulation,
    output: Output,
) -> int:
    """Measure the throughput of several answers at once, compared with one after the other, on one engine.

    Exit status 1 if an answer's tokens are not those of plain decoding.
    """
    from pvlm.bench.sessions import NAMES, SESSIONS, measure_sessions
    from pvlm.cli.bundled import bundled_clips, clips_folder

    with clips_folder() as folder:
        rows = run_measurement(
            lambda _: measure_sessions(
                chosen(pairs, NAMES),
                [(str(folder / clip.file), clip.question) for clip in bundled_clips()],
                sessions=at_once or SESSIONS,
                tokens=tokens,
                rounds=rounds,
                time_scale=time_scale,
                transport=emulation.transport,
            ),
            output,
        )
    return report(rows, [_table(rows)], json=emulation.json)


def _table(rows: Sequence[SessionsRow]) -> Table:
    return table_of(
        "throughput of answers at once, against one after the other",
        rows,
        {
            "pair": lambda row: row.pair,
            "at once": lambda row: str(row.sessions),
            "tokens": lambda row: str(row.tokens),
            "tokens/s": lambda row: number(row.tokens_per_second, 1),
            "ratio": lambda row: f"{number(row.ratio)}{'' if row.passed else ' !'}",
            "rounds": lambda row: " ".join(number(ratio) for ratio in sorted(row.ratios)),
            "same": same,
        },
        text=("pair", "rounds"),
    )
