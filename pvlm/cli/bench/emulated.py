"""``pvlm bench emulated``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import anyio
from rich.console import Console
from rich.table import Table

from pvlm.bench.emulated import NEAR_THEORY, EmulatedRow, measure_emulated
from pvlm.bench.pairs import PAIRS, VANILLA_WINDOW
from pvlm.cli.bench.common import add_choice, add_emulation_options, add_json_option, chosen, write_rows
from pvlm.cli.console import quiet_logs
from pvlm.telemetry.figures import number


def add_parser(what: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    emulated = what.add_parser(
        "emulated", help="speed-ups on pairs without weights that take the paper's times, beside theory's"
    )
    add_choice(emulated, "--pairs", PAIRS)
    emulated.add_argument("--tokens", type=int, default=256, metavar="N", help="tokens of each answer (default: 256)")
    add_emulation_options(emulated, time_scale=0.1)
    add_json_option(emulated)
    emulated.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Exit status 1 if an answer's tokens are not those of plain decoding."""
    quiet_logs(False)
    console = Console(highlight=False)

    async def measure() -> list[EmulatedRow]:
        return await measure_emulated(
            [PAIRS[name] for name in chosen(options.pairs, PAIRS)],
            tokens=options.tokens,
            time_scale=options.time_scale,
            transport=options.transport,
        )

    rows = anyio.run(measure)
    console.print(_table(rows))
    for line in conclusions(rows):
        console.print(line, soft_wrap=True)
    write_rows(options.json, rows)
    return 0 if all(row.same_tokens for row in rows) else 1


def _table(rows: Sequence[EmulatedRow]) -> Table:
    first = rows[0]
    table = Table(
        title=f"speed-up in decoding {first.tokens} tokens, times x {first.time_scale:g}, {first.transport}",
        title_justify="left",
        box=None,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    columns = ("pair", "method", "paper", "theorem", "ours", "ours/theorem", "M", "window", "coord. ms", "same")
    for column in columns:
        table.add_column(column, justify="left" if column in ("pair", "method") else "right")
    for row in rows:
        table.add_row(
            row.pair,
            row.method,
            number(row.paper) + ("*" if row.fitted and row.paper is not None else ""),
            number(row.predicted),
            number(row.speedup),
            number(row.speedup / row.predicted, 3),
            number(row.mean_accepted_length, 1),
            "–" if row.window is None else str(row.window),
            f"{number(row.coordination_ms_p50)}/{number(row.coordination_ms_p99, 1)}",
            "yes" if row.same_tokens else "NO",
        )
    return table


def conclusions(rows: Sequence[EmulatedRow]) -> list[str]:
    """What the rows of method parallel show, and what stands behind the others, a line each."""
    parallel = [row for row in rows if row.method == "parallel"]
    comparable = [row for row in parallel if row.comparable]
    beyond = [row.pair for row in parallel if not row.fitted and not row.comparable]
    lines = [
        _score(f"parallel >= {NEAR_THEORY} of theorem 7", parallel, [row.pair for row in parallel if row.near_theory]),
        _score(
            "parallel >= the paper's figure, where theorem 7 reaches it",
            comparable,
            [row.pair for row in comparable if row.paper is not None and row.speedup >= row.paper],
        ),
    ]
    if beyond:
        lines.append(f"theorem 7 does not reach the paper's figure, so that is not compared: {', '.join(beyond)}")
    fitted = {row.pair: row.fitted for row in parallel if row.fitted}
    if fitted:
        listed = "; ".join(f"{pair}: {', '.join(what)}" for pair, what in fitted.items())
        lines.append(f"* fitted, for the paper does not say it, so its figure is not compared: {listed}")
    lines.append(f"sd and specvlm: theorem 4, window {VANILLA_WINDOW}; specvlm has a pruned draft and its own M")
    lines.append(
        "coord. ms: between two passes, less the draft's work on what the second took in (median/99th percentile)"
    )
    lines.append("same: whether the answer's tokens are those of plain decoding (ar)")
    return lines


def _score(what: str, rows: Sequence[EmulatedRow], passed: Sequence[str]) -> str:
    failed = [row.pair for row in rows if row.pair not in passed]
    return f"{what}: {len(passed)} of {len(rows)}" + (f" (not: {', '.join(failed)})" if failed else "")
