"""``pvlm bench pruning``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from pvlm.cli.bench.common import report, run_measurement, same, table_of
from pvlm.cli.commands import command, option
from pvlm.cli.options import (
    DESCRIBE,
    DraftView,
    JsonFile,
    Models,
    Output,
    Places,
    PlotFile,
    Question,
    Reading,
    settings,
)
from pvlm.cli.plotting import INK, check_plot, new_figure, pair_and_machine, plain_panel
from pvlm.telemetry.figures import number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from rich.table import Table

    from pvlm.bench.pruning import PruningRow

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


def register(group: typer.Typer) -> None:
    command(group, "pruning")(pruning)


def pruning(
    videos: Annotated[list[str], typer.Argument(metavar="VIDEO...", help="paths of videos")],
    *,
    question: Question = DESCRIBE,
    methods: Annotated[
        list[str] | None,
        option(
            "--methods",
            metavar="NAME...",
            help="pruners: {pruners} (default: all but none)",
            kind="pruners",
        ),
    ] = None,
    ratios: Annotated[
        list[float] | None, option("--ratios", metavar="R...", help="prune ratios (default: 0 0.5 0.75 0.9 0.95)")
    ] = None,
    json: JsonFile = None,
    plot: PlotFile = None,
    output: Output,
    models: Models,
    places: Places,
    view: DraftView,
    reading: Reading,
) -> int:
    """Measure acceptance by pruning method and ratio, and the places of the kept tokens.

    Exit status 1 if an answer's tokens are not those of plain decoding.
    """
    from pvlm.bench.pruning import METHODS, RATIOS, measure_pruning
    from pvlm.config import engine_config

    check_plot(plot)
    config = engine_config(settings(models, places, view, reading))
    rows = run_measurement(
        lambda _: measure_pruning(
            config,
            videos,
            question,
            methods=methods or METHODS,
            ratios=ratios or RATIOS,
        ),
        output,
    )
    return report(
        rows,
        [_table(rows)],
        json=json,
        plot=plot,
        draw=draw,
        caption=[
            f"n = {rows[0].clips} clips, {rows[0].tokens} tokens in each setting. Acceptance rate: accepted of the "
            "drafted tokens that were tested. Dotted line: the same share for every part of the video.",
            pair_and_machine(config),
        ],
    )


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
    from pvlm.bench.pruning import PARTS

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
