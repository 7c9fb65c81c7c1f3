"""``pvlm bench sessions``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from importlib.resources import as_file, files

import anyio
from rich.table import Table

from pvlm.bench.pairs import PAIRS
from pvlm.bench.sessions import SESSIONS, SessionsRow, measure_sessions
from pvlm.cli.bench.common import add_choice, add_emulation_options, add_rounds_option, chosen, report, same, table_of
from pvlm.cli.console import quiet_logs
from pvlm.cli.demo import bundled_clips
from pvlm.config import BUNDLED
from pvlm.telemetry.figures import number

NAMES = (*PAIRS, BUNDLED)


def add_parser(what: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    sessions = what.add_parser(
        "sessions", help="throughput of several answers at once, against one after the other, on one engine"
    )
    add_choice(sessions, "--pairs", NAMES)
    sessions.add_argument(
        "--sessions", nargs="+", type=int, default=SESSIONS, metavar="N",
        help=f"answers at once (default: {' '.join(map(str, SESSIONS))})",
    )  # fmt: skip
    sessions.add_argument(
        "--tokens", type=int, default=128, metavar="N", help="tokens of each emulated answer (default: 128)"
    )
    add_rounds_option(sessions, 3)
    add_emulation_options(sessions, time_scale=0.1)
    sessions.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Exit status 1 if an answer's tokens are not those of plain decoding."""
    quiet_logs(False)

    async def measure() -> list[SessionsRow]:
        with as_file(files("pvlm") / "bundled" / "clips") as folder:
            return await measure_sessions(
                chosen(options.pairs, NAMES),
                [(str(folder / clip.file), clip.question) for clip in bundled_clips()],
                sessions=options.sessions,
                tokens=options.tokens,
                rounds=options.rounds,
                time_scale=options.time_scale,
                transport=options.transport,
            )

    rows = anyio.run(measure)
    return report(options, rows, [_table(rows)])


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
