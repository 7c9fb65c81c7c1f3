"""``pvlm bench emulated``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from pvlm.cli.bench.common import Emulation, TimeScale, choice, chosen, report, run_measurement, same, table_of
from pvlm.cli.commands import command, option
from pvlm.cli.options import Output
from pvlm.telemetry.figures import number

if TYPE_CHECKING:
    from rich.table import Table

    from pvlm.bench.emulated import EmulatedRow


def register(group: typer.Typer) -> None:
    command(group, "emulated")(emulated)


def emulated(
    *,
    pairs: Annotated[list[str] | None, choice("--pairs", "pairs")] = None,
    tokens: Annotated[int, option("--tokens", metavar="N", help="tokens of each answer", show_default=True)] = 256,
    time_scale: TimeScale = 0.1,
    branch_cost: Annotated[
        float,
        option(
            "--branch-cost",
            metavar="SHARE",
            help="what a prepared window adds to a step of the draft, as a share of it",
            show_default=True,
        ),
    ] = 0.02,
    emulation: Emulation,
    output: Output,
) -> int:
    """Measure speed-ups on pairs without weights that take the paper's times, beside theory's.

    Exit status 1 if an answer's tokens are not those of plain decoding.
    """
    from pvlm.bench.emulated import measure_emulated
    from pvlm.bench.pairs import PAIRS

    rows = run_measurement(
        lambda _: measure_emulated(
            [PAIRS[name] for name in chosen(pairs, PAIRS)],
            tokens=tokens,
            time_scale=time_scale,
            branch_cost=branch_cost,
            transport=emulation.transport,
        ),
        output,
    )
    return report(
        rows, [_table(rows), _outcomes_table(rows)], json=emulation.json, lines=conclusions(rows, branch_cost)
    )


def _table(rows: Sequence[EmulatedRow]) -> Table:
    first = rows[0]
    return table_of(
        f"speed-up in decoding {first.tokens} tokens, times x {first.time_scale:g}, {first.transport}",
        rows,
        {
            "pair": lambda row: row.pair,
            "method": lambda row: row.method,
            "paper": lambda row: number(row.paper) + ("*" if row.fitted and row.paper is not None else ""),
            "theorem": lambda row: number(row.predicted),
            "ours": lambda row: number(row.speedup),
            "ours/theorem": lambda row: number(row.speedup / row.predicted, 3),
            "M": lambda row: number(row.mean_accepted_length, 1),
            "window": lambda row: number(row.window, 0),
            "coord. ms": lambda row: f"{number(row.coordination_ms_p50)}/{number(row.coordination_ms_p99, 1)}",
            "same": same,
        },
        text=("pair", "method"),
    )


def _outcomes_table(rows: Sequence[EmulatedRow]) -> Table:
    without = {row.pair: row.speedup for row in rows if row.method == "parallel"}
    return table_of(
        "parallel with prepared outcomes",
        [row for row in rows if row.method == "outcomes"],
        {
            "pair": lambda row: row.pair,
            "without": lambda row: number(without.get(row.pair)),
            "first": lambda row: number(row.first_speedup),
            "with": lambda row: number(row.speedup),
            "theorem": lambda row: number(row.predicted),
            "hits": lambda row: number(row.hit_rate),
            "branches": lambda row: number(row.branches, 1),
            "with/th. 8": lambda row: number(None if row.theorem_8 is None else row.speedup / row.theorem_8, 3),
            "hit ms": lambda row: number(row.hit_coordination_ms_p50),
        },
        text=("pair",),
    )


def conclusions(rows: Sequence[EmulatedRow], branch_cost: float = 0.02) -> list[str]:
    """Lines about the rows of method parallel, and about the meaning of the columns."""
    from pvlm.bench.emulated import NEAR_THEORY
    from pvlm.bench.pairs import VANILLA_WINDOW

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
        lines.append(f"theorem 7 does not reach the paper's figure, so the two are not compared: {', '.join(beyond)}")
    fitted = {row.pair: row.fitted for row in parallel if row.fitted}
    if fitted:
        listed = "; ".join(f"{pair}: {', '.join(what)}" for pair, what in fitted.items())
        lines.append(f"* fitted, because the paper does not give it, so its figure is not compared: {listed}")
    lines.append(f"sd and specvlm: theorem 4, window {VANILLA_WINDOW}; specvlm has a pruned draft and its own M")
    lines.append("coord. ms: time between two passes, without the draft's work for the second (median/99th percentile)")
    lines.append("outcomes: parallel with prepared outcomes; theorem: the better of theorems 7 and 8")
    lines.append("parallel, outcomes: the second answer, because the first teaches the policy; first: the first one")
    lines.append(f"a step of the draft over n continuations takes T_q (1 + {branch_cost:g} (n - 1)) (--branch-cost)")
    lines.append("hits: share of rejections whose outcome was prepared; branches: prepared windows for each window")
    lines.append(
        "with/th. 8: theorem 8 with these hits and branches; hit ms: time between two passes after a hit (median)"
    )
    lines.append("same: whether the answer's tokens are those of plain decoding (ar)")
    return lines


def _score(what: str, rows: Sequence[EmulatedRow], passed: Sequence[str]) -> str:
    failed = [row.pair for row in rows if row.pair not in passed]
    return f"{what}: {len(passed)} of {len(rows)}" + (f" (not: {', '.join(failed)})" if failed else "")
