"""``pvlm bench sessions``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from pvlm.cli.bench.common import (
    BundledBackend,
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
from pvlm.cli.options import Output, PlotFile
from pvlm.cli.plotting import PARALLEL, VANILLA, check_plot, machine, new_figure, plain_panel
from pvlm.telemetry.figures import number

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.table import Table

    from pvlm.bench.sessions import SessionsRow


COLUMNS = (
    "busy: the share of the time without prefill in which the target ran a pass",
    "of limit: the least time for the arithmetic of the target's passes, over the time that they took",
    "first token, between: time to the first token, and between two pieces of an answer (median/99th percentile)",
)
"""What columns of the table mean; the picture has no such columns."""


def register(group: typer.Typer) -> None:
    command(group, "sessions")(sessions)


def sessions(
    *,
    pairs: Annotated[list[str] | None, choice("--pairs", "all_pairs")] = None,
    at_once: Annotated[
        list[int] | None, option("--sessions", metavar="N...", help="answers at once (default: 1 2 4 8)")
    ] = None,
    tokens: Annotated[int, option("--tokens", metavar="N", help="tokens of each answer", show_default=True)] = 200,
    rounds: Annotated[int, rounds_option()] = 3,
    time_scale: TimeScale = 0.1,
    further_token: Annotated[
        float,
        option(
            "--further-token",
            metavar="R",
            help="cost of each further token of an emulated pass, as a share of the first's",
            show_default=True,
        ),
    ] = 0.02,
    backend: BundledBackend = None,
    emulation: Emulation,
    plot: PlotFile = None,
    output: Output,
) -> int:
    """Measure the throughput and latency of several answers at once, compared with one after the other.

    Exit status 1 if an answer's tokens are not those of plain decoding.
    """
    from pvlm.bench.sessions import NAMES, SESSIONS, measure_sessions
    from pvlm.cli.bundled import bundled_clips, clips_folder

    check_plot(plot)
    with clips_folder() as folder:
        rows = run_measurement(
            lambda _: measure_sessions(
                chosen(pairs, NAMES),
                [(str(folder / clip.file), clip.question) for clip in bundled_clips()],
                sessions=at_once or SESSIONS,
                tokens=tokens,
                rounds=rounds,
                time_scale=time_scale,
                further_token=further_token,
                backend=backend,
                transport=emulation.transport,
            ),
            output,
        )
    lines = list(_conclusions(rows))
    return report(
        rows, [_table(rows)], json=emulation.json, plot=plot, lines=[*lines, *COLUMNS], draw=_draw, caption=lines
    )


def _table(rows: Sequence[SessionsRow]) -> Table:
    return table_of(
        "answers at once, against one after the other",
        rows,
        {
            "pair": lambda row: row.pair,
            "at once": lambda row: str(row.sessions),
            "decoding": lambda row: f"{number(row.decoding_ratio)}{'' if row.passed else ' !'}",
            "end to end": lambda row: number(row.ratio),
            "tokens/s": lambda row: number(row.decoding_tokens_per_second, 1),
            "first token s": lambda row: f"{number(row.first_token_s_p50)}/{number(row.first_token_s_p99)}",
            "between ms": lambda row: f"{number(row.between_tokens_ms_p50, 0)}/{number(row.between_tokens_ms_p99, 0)}",
            "busy": lambda row: number(row.busy),
            "of limit": lambda row: number(row.of_limit),
            "rounds": lambda row: " ".join(number(ratio) for ratio in sorted(row.decoding_ratios)),
            "same": same,
        },
        text=("pair", "rounds"),
    )


def _conclusions(rows: Sequence[SessionsRow]) -> Iterator[str]:
    """Lines about the cost of a shared pass, the gap in a prefill, and the meaning of the columns."""
    for row in {row.pair: row for row in rows}.values():
        yield (
            f"{row.pair}: the longest time between two pieces of an answer was {number(row.prefill_gap_ms, 0)} ms "
            f"during the prefill of another, which took {number(row.prefill_ms, 0)} ms"
        )
    for further in {row.further_token for row in rows if row.further_token is not None}:
        yield (
            f"emulated: a pass of the target over n tokens, and a step of the draft for n answers, costs "
            f"(1 + {further:g} (n - 1)) of one; times are the models' own"
        )
    yield f"{machine()}; answers of {rows[0].tokens // rows[0].sessions} tokens; transport {rows[0].transport}"
    yield "decoding: throughput of the tokens after the first, without the time of the target's own prefill"


def _draw(rows: Sequence[SessionsRow]) -> Figure:
    """Throughput and latency over the answers at once, a line for each pair."""
    figure = new_figure(9, 3.2)
    throughput, first, between = figure.subplots(1, 3)
    counts = sorted({row.sessions for row in rows})
    for pair, color in zip(dict.fromkeys(row.pair for row in rows), (PARALLEL, VANILLA) * len(rows), strict=False):
        own = [row for row in rows if row.pair == pair]
        along = [row.sessions for row in own]
        throughput.plot(along, [row.decoding_ratio for row in own], "o-", color=color, label=f"{pair}: decoding")
        throughput.plot(along, [row.ratio for row in own], "o--", color=color, label=f"{pair}: end to end")
        for panel, low, high in (
            (first, [row.first_token_s_p50 for row in own], [row.first_token_s_p99 for row in own]),
            (between, [row.between_tokens_ms_p50 for row in own], [row.between_tokens_ms_p99 for row in own]),
        ):
            panel.plot(along, low, "o-", color=color, label=f"{pair}: median")
            panel.plot(along, high, "o--", color=color, label=f"{pair}: 99th percentile")
    for panel, title in (
        (throughput, "throughput, as a ratio"),
        (first, "time to first token, s"),
        (between, "time between pieces, ms"),
    ):
        plain_panel(panel)
        panel.set_title(title, fontsize="medium", loc="left")
        panel.set_xscale("log", base=2)
        panel.set_xticks(counts, [str(count) for count in counts])
        panel.set_ylim(bottom=0)
        panel.legend(fontsize="x-small", frameon=False)
    figure.supxlabel("answers at once", fontsize="medium")
    return figure
