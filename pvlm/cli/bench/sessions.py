"""``pvlm bench sessions``."""

from __future__ import annotations

import argparse
from importlib.resources import as_file, files

import anyio
from rich.console import Console
from rich.table import Table

from pvlm.bench.pairs import PAIRS
from pvlm.bench.sessions import SESSIONS, SessionsRow, measure_sessions
from pvlm.cli.bench.common import add_choice, add_emulation_options, add_json_option, chosen, write_rows
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
    sessions.add_argument(
        "--rounds", type=int, default=3, metavar="N", help="the ratio is the median of N (default: 3)"
    )
    add_emulation_options(sessions, time_scale=0.1)
    add_json_option(sessions)
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
    Console(highlight=False).print(_table(rows))
    write_rows(options.json, rows)
    return 0 if all(row.same_tokens for row in rows) else 1


def _table(rows: list[SessionsRow]) -> Table:
    table = Table(
        title="throughput of answers at once, against one after the other",
        title_justify="left",
        box=None,
        pad_edge=False,
    )
    for column in ("pair", "at once", "tokens", "tokens/s", "ratio", "rounds", "same"):
        table.add_column(column, justify="left" if column in ("pair", "rounds") else "right")
    for row in rows:
        table.add_row(
            row.pair,
            str(row.sessions),
            str(row.tokens),
            number(row.tokens_per_second, 1),
            f"{number(row.ratio)}{'' if row.passed else ' !'}",
            " ".join(number(ratio) for ratio in sorted(row.ratios)),
            "yes" if row.same_tokens else "NO",
        )
    return table
