"""``pvlm bench pruning``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

import anyio
from rich.console import Console
from rich.table import Table

from pvlm.bench.pruning import METHODS, PARTS, RATIOS, PruningRow, measure_pruning
from pvlm.cli.bench.common import add_json_option, write_rows
from pvlm.cli.console import quiet_logs
from pvlm.cli.options import DESCRIBE, add_engine_options, engine_settings
from pvlm.cli.plotting import INK, add_plot_option, check_plot, new_figure, plain_panel, save_plot
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
"""The kept tokens are drawn for the measured ratio that is nearest to this one."""
SHOWN_METHODS = ("attention", "uv", "novelty")
"""Those whose kept tokens are drawn, where they are measured: the ones that choose by score alone, and `novelty`."""


def add_parser(what: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    pruning = what.add_parser("pruning", help="acceptance for each pruning method and ratio, and what they keep")
    pruning.add_argument("videos", nargs="+", metavar="VIDEO")
    pruning.add_argument("--question", default=DESCRIBE, help=f"default: {DESCRIBE}")
    pruning.add_argument(
        "--methods", nargs="+", default=list(METHODS), metavar="NAME", help=f"default: {' '.join(METHODS)}"
    )
    pruning.add_argument(
        "--ratios", nargs="+", type=float, default=list(RATIOS), metavar="R",
        help=f"default: {' '.join(f'{ratio:g}' for ratio in RATIOS)}",
    )  # fmt: skip
    add_json_option(pruning)
    add_plot_option(pruning, "acceptance over the ratio, and the places of the tokens that are kept")
    add_engine_options(pruning)
    pruning.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    quiet_logs(False)
    check_plot(options.plot)
    console = Console(highlight=False)

    async def measure() -> list[PruningRow]:
        return await measure_pruning(
            engine_config(engine_settings(options)),
            options.videos,
            options.question,
            methods=options.methods,
            ratios=options.ratios,
        )

    rows = anyio.run(measure)
    console.print(_table(rows))
    write_rows(options.json, rows)
    if options.plot:
        save_plot(options.plot, draw(rows))
    return 0 if all(row.same_tokens for row in rows) else 1


def _table(rows: list[PruningRow]) -> Table:
    table = Table(
        title=f"{rows[0].clips} clips, {rows[0].tokens} tokens", title_justify="left", box=None, pad_edge=False
    )
    for column in ("pruning", "ratio", "positions", "kept", "acceptance rate", "mean accepted length", "same tokens"):
        table.add_column(column, justify="left" if column in ("pruning", "positions") else "right")
    for row in rows:
        table.add_row(
            row.prune,
            f"{row.ratio:g}",
            row.positions,
            f"{row.kept:.0%}",
            number(row.acceptance_rate, 3),
            number(row.mean_accepted_length, 1),
            "yes" if row.same_tokens else "NO",
        )
    return table


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
