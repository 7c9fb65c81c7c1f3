"""``pvlm bench pruning``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

import anyio
from rich.table import Table

from pvlm.bench.pruning import METHODS, PARTS, RATIOS, PruningRow, measure_pruning
from pvlm.cli.bench.common import add_json_option, add_question_option, report, same, table_of
from pvlm.cli.console import quiet_logs
from pvlm.cli.options import add_engine_options, engine_settings
from pvlm.cli.plotting import INK, add_plot_option, check_plot, new_figure, plain_panel
from pvlm.config import engine_config
from pvlm.telemetry.figures import number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLORS = {
    "uv": "#c0392b",
    "attention": "#d07c2e",
    "specvlm": "#8e6bb0",
    "novelty": "#1f5fa8",
    "uniform": "#5a8f4e",
    "random": "#8a8a8a",
}
SHOWN_RATIO = 0.9
"""The picture shows the kept tokens for the measured ratio nearest to this one."""
SHOWN_METHODS = ("attention", "uv", "novelty")
"""Methods whose kept tokens the picture shows: those that choose by score alone, and `novelty`."""


def add_parser(what: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    pruning = what.add_parser(
        "pruning", help="acceptance by pruning method and ratio, and the places of the kept tokens"
    )
    pruning.add_argument("videos", nargs="+", metavar="VIDEO")
    add_question_option(pruning)
    pruning.add_argument(
        "--methods", nargs="+", default=list(METHODS), metavar="NAME", help=f"default: {' '.join(METHODS)}"
    )
    pruning.add_argument(
        "--ratios", nargs="+", type=float, default=list(RATIOS), metavar="R",
        help=f"default: {' '.join(f'{ratio:g}' for ratio in RATIOS)}",
    )  # fmt: skip
    add_json_option(pruning)
    add_plot_option(pruning, "acceptance over the ratio, and the places of the kept tokens")
    add_engine_options(pruning)
    pruning.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Exit status 1 if an answer's tokens are not those of plain decoding."""
    quiet_logs(False)
    check_plot(options.plot)

    async def measure() -> list[PruningRow]:
        return await measure_pruning(
            engine_config(engine_settings(options)),
            options.videos,
            options.question,
            methods=options.methods,
            ratios=options.ratios,
        )

    rows = anyio.run(measure)
    return report(options, rows, [_table(rows)], draw=draw)


def _table(rows: Sequence[PruningRow]) -> Table:
    return table_of(
        f"{rows[0].clips} clips, {rows[0].tokens} tokens",
        rows,
        {
            "pruning": lambda row: row.prune,
            "ratio": lambda row: f"{row.ratio:g}",
            "positions": lambda row: row.positions,
            "kept": lambda row: f"{row.kept:.0%}",
            "acceptance rate": lambda row: number(row.acceptance_rate, 3),
            "mean accepted length": lambda row: number(row.mean_accepted_length, 1),
            "same tokens": same,
        },
        text=("pruning", "positions"),
    )


def draw(rows: Sequence[PruningRow]) -> Figure:
    """Two panels: acceptance over the ratio, and the share of the kept tokens over the place in the video."""
    figure = new_figure(10.4, 4.0)
    acceptance, places = figure.subplots(1, 2)
    _draw_acceptance(acceptance, rows)
    _draw_places(places, rows)
    return figure


def _draw_acceptance(panel: Axes, rows: Sequence[PruningRow]) -> None:
    whole = [row for row in rows if row.ratio == 0]
    for method in _methods(rows):
        points = whole + [row for row in rows if row.prune == method]
        panel.plot(
            [row.ratio for row in points],
            [float("nan") if row.acceptance_rate is None else row.acceptance_rate for row in points],
            color=COLORS.get(method), lw=2, marker="o", markersize=5, markeredgecolor="white", label=method,
        )  # fmt: skip
    panel.set_title("acceptance rate", loc="left", fontsize="medium", color=INK)
    panel.set_xlabel("share of the video tokens that the draft does not see", color=INK)
    panel.legend(frameon=False, labelcolor=INK, fontsize="small")
    plain_panel(panel)


def _draw_places(panel: Axes, rows: Sequence[PruningRow]) -> None:
    pruned = [row for row in rows if row.ratio > 0]
    panel.set_title("share of the kept tokens", loc="left", fontsize="medium", color=INK)
    panel.set_xlabel(f"place in the video, in {PARTS} parts", color=INK)
    plain_panel(panel)
    if not pruned:
        return
    ratio = min((row.ratio for row in pruned), key=lambda measured: abs(measured - SHOWN_RATIO))
    panel.set_title(f"share of the kept tokens, prune ratio {ratio:g}", loc="left", fontsize="medium", color=INK)
    edges = [part / PARTS for part in range(PARTS + 1)]
    shown = [row for row in pruned if row.ratio == ratio and row.prune in SHOWN_METHODS] or pruned
    for row in shown:
        panel.stairs(row.kept_by_part, edges, baseline=None, color=COLORS.get(row.prune), lw=2, label=row.prune)
    panel.axhline(1 / PARTS, color=INK, linewidth=0.9, linestyle=(0, (1, 2)), label="evenly")
    panel.set_ylim(bottom=0)
    panel.set_xlim(0, 1)
    panel.yaxis.set_major_formatter(lambda share, _: f"{100 * share:g}%")
    panel.xaxis.set_major_formatter(lambda place, _: f"{place:.0%}")
    panel.legend(frameon=False, labelcolor=INK, fontsize="small")


def _methods(rows: Sequence[PruningRow]) -> list[str]:
    return list(dict.fromkeys(row.prune for row in rows if row.ratio > 0))
