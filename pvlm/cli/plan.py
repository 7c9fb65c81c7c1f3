"""``pvlm plan``: predicted speed-ups and windows, as a table and as a picture."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from importlib.resources import as_file, files
from typing import TYPE_CHECKING, Any, Literal

import anyio
from rich.console import Console
from rich.table import Table

from pvlm.bench.planning import PairFigures, RatioPlan, measure, plan
from pvlm.cli.console import ProgressDisplay, quiet_logs, write_json
from pvlm.cli.demo import bundled_clips
from pvlm.cli.options import DESCRIBE, add_answer_options, add_engine_options, answer_settings, engine_settings
from pvlm.cli.plotting import (
    INK,
    PARALLEL,
    VANILLA,
    add_plot_option,
    check_plot,
    new_figure,
    plain_panel,
    save_plot,
)
from pvlm.config import engine_config
from pvlm.errors import OptionError
from pvlm.speculation.theory import acceptance_from_length

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

RATIOS = (0.0, 0.5, 0.9)
BY_HAND = {
    "target_ms": "--target-ms",
    "draft_ms": "--draft-ms",
    "acceptance": "--acceptance",
    "accepted_length": "--accepted-length",
}
PANELS_A_ROW = 3


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "plan",
        help="predict the speed-up for every window, from times and acceptance",
        description="Predict the speed-up over plain decoding for every window. The figures are given (--target-ms, "
        "--draft-ms, and --acceptance or --accepted-length) or measured (--measure).",
    )
    given = parser.add_argument_group("figures by hand")
    given.add_argument("--target-ms", nargs="+", metavar="MS", help="T_p in ms, or T_p(n) as 1=420 10=431")
    given.add_argument("--draft-ms", nargs="+", metavar="MS", help="T_q in ms, or by prune ratio as 0=78.3 0.9=46.6")
    given.add_argument(
        "--acceptance", nargs="+", metavar="B", help="acceptance rate (beta) of tested tokens, or by prune ratio"
    )
    given.add_argument(
        "--accepted-length",
        nargs="+",
        metavar="M",
        help="instead of --acceptance: accepted tokens a rejection, M = beta/(1-beta)",
    )
    measured = parser.add_argument_group("measured figures")
    measured.add_argument(
        "--measure", nargs="*", metavar=("VIDEO", "QUESTION"),
        help="measure the pair on a video (default: a bundled clip); ignores --method, --window and --prune-ratio",
    )  # fmt: skip
    measured.add_argument(
        "--ratios", nargs="+", type=float, metavar="R", help="prune ratios to measure (default: 0 0.5 0.9)"
    )
    measured.add_argument(
        "--rounds", type=int, default=1, metavar="N", help="repeat the measurement N times (default: 1)"
    )
    parser.add_argument("--gamma-max", type=int, default=16, metavar="N", help="largest window (default: 16)")
    parser.add_argument("--json", metavar="FILE", help="write figures and predictions to a file")
    add_plot_option(parser, "the speed-up over the window")
    add_engine_options(parser)
    add_answer_options(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    quiet_logs(False)
    check_plot(options.plot)
    console = Console(highlight=False)
    by_hand = [flag for name, flag in BY_HAND.items() if getattr(options, name)]
    if options.measure is None:
        figures, source = _given_figures(options), "given"
    elif by_hand:
        raise OptionError(f"--measure and {by_hand[0]} exclude each other: use one of them")
    else:
        figures, source = anyio.run(_measured_figures, options), "measured"
    plans = plan(figures, options.gamma_max)
    for line in _report(figures, plans, source):
        console.print(line)
    if len(plans) > 1 and source == "given" and len(options.acceptance or options.accepted_length) == 1:
        console.print("The one given acceptance rate counts for every prune ratio.")
    if options.json:
        written = {"source": source, "target_ms": figures.target_ms, "ratios": plans}
        write_json(options.json, written)
    if options.plot:
        save_plot(options.plot, draw(plans))
    return 0


# ---- figures ------------------------------------------------------------------------------------------------------


def _given_figures(options: argparse.Namespace) -> PairFigures:
    for name in ("target_ms", "draft_ms"):
        if not getattr(options, name):
            raise OptionError(f"{BY_HAND[name]} is missing: give the pair's figures, or use --measure")
    if bool(options.acceptance) == bool(options.accepted_length):
        raise OptionError("give one of --acceptance and --accepted-length")
    curve = _pairs(options.target_ms, "--target-ms", "1")
    if odd := [n for n in curve if n != int(n)]:
        raise OptionError(f"--target-ms: a pass over {odd[0]:g} tokens: it must be a whole number")
    draft_ms = _pairs(options.draft_ms, "--draft-ms", "0")
    name = "acceptance" if options.acceptance else "accepted_length"
    texts: list[str] = getattr(options, name)
    if len(texts) == 1 and "=" not in texts[0]:
        texts = [f"{ratio}={texts[0]}" for ratio in draft_ms]
    acceptance = _pairs(texts, BY_HAND[name], "0")
    if options.accepted_length:
        if wrong := [m for m in acceptance.values() if m < 0]:
            raise OptionError(f"the accepted length is {wrong[0]:g}: it must be at least 0")
        acceptance = {ratio: acceptance_from_length(m) for ratio, m in acceptance.items()}
    return PairFigures(target_ms={int(n): ms for n, ms in curve.items()}, draft_ms=draft_ms, acceptance=acceptance)


def _pairs(texts: Sequence[str], flag: str, default: str) -> dict[float, float]:
    """Parse ``KEY=VALUE`` arguments; a value alone has the key ``default``. Raises OptionError."""
    pairs: dict[float, float] = {}
    for text in texts:
        key, _, value = text.rpartition("=")
        try:
            number, found = float(key or default), float(value)
        except ValueError:
            raise OptionError(f"{flag}: '{text}' is not a number, nor KEY=NUMBER") from None
        if not (abs(number) < float("inf") and abs(found) < float("inf")):
            raise OptionError(f"{flag}: '{text}' is not finite")
        if number in pairs:
            raise OptionError(f"{flag} has two values for {number:g}")
        pairs[number] = found
    return pairs


async def _measured_figures(options: argparse.Namespace) -> PairFigures:
    if len(options.measure) > 2:
        raise OptionError("--measure takes a video and a question: quote a question of several words")
    clip = bundled_clips()[0]
    with as_file(files("pvlm") / "bundled" / "clips" / clip.file) as path, ProgressDisplay() as progress:
        video, question = str(path), clip.question
        if options.measure:
            video, question = options.measure[0], (options.measure[1:] or [DESCRIBE])[0]
        return await measure(
            engine_config(engine_settings(options)),
            video,
            question,
            ratios=options.ratios or RATIOS,
            rounds=options.rounds,
            options=answer_settings(options),
            on_progress=progress.update,
        )


# ---- table --------------------------------------------------------------------------------------------------------


def _report(figures: PairFigures, plans: Sequence[RatioPlan], source: str) -> list[Any]:
    """The printed report: the target's times, a table for each prune ratio, and the best windows."""
    curve = ", ".join(f"{ms:.4g} ms over {n}" for n, ms in sorted(figures.target_ms.items()))
    if len(figures.target_ms) == 1:
        curve = f"{figures.target_ms[1]:.4g} ms, however many tokens it takes in"
    lines: list[Any] = [f"A pass of the target ({source}): {curve}.", ""]
    for ratio_plan in plans:
        lines += [
            f"[bold]Prune ratio {ratio_plan.ratio:g}[/]: T_q = {ratio_plan.draft_ms:.4g} ms, c = {ratio_plan.c:.2f}, "
            f"β = {ratio_plan.acceptance:.3f}",
            _table(ratio_plan),
            "",
        ]
    for ratio_plan in plans:
        lines.append(
            f"Prune ratio {ratio_plan.ratio:g}: γ* = [bold]{ratio_plan.gamma}[/], k = {ratio_plan.k}: "
            f"[bold]{ratio_plan.speedup:.2f}×[/]; vanilla at its best, γ = {ratio_plan.vanilla_gamma}: "
            f"{ratio_plan.vanilla_speedup:.2f}×."
        )
        if ratio_plan.gamma == len(ratio_plan.windows):
            lines.append("  This is the largest window in the search: a larger --gamma-max may find a better one.")
        if ratio_plan.speedup < 1:
            lines.append("  No window pays here: plain decoding is faster.")
    return lines


def _table(ratio_plan: RatioPlan) -> Table:
    table = Table(box=None, pad_edge=False)
    for column in ("γ", "vanilla SD", "parallel SD", "k", "theorem 7", ""):
        table.add_column(column, justify="right" if column else "left")
    for window in ratio_plan.windows:
        best = window.gamma == ratio_plan.gamma
        table.add_row(
            str(window.gamma),
            f"{window.vanilla:.2f}×",
            f"{window.parallel:.2f}×",
            str(window.k),
            f"{window.theorem_7:.2f}×",
            "← γ*" if best else "",
            style="bold green" if best else None,
        )
    return table


# ---- picture ------------------------------------------------------------------------------------------------------


def draw(plans: Sequence[RatioPlan]) -> Figure:
    """Speed-up over the window, a panel for each prune ratio: parallel and vanilla, the best window marked."""
    columns = min(len(plans), PANELS_A_ROW)
    rows = -(-len(plans) // columns)
    figure = new_figure(max(5.4, 3.3 * columns), 0.6 + 3.3 * rows)
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for panel, ratio_plan in zip(panels.flat, plans, strict=False):
        _draw_ratio(panel, ratio_plan)
    for panel in panels.flat[len(plans) :]:
        panel.set_axis_off()
    lines, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(lines, labels, loc="outside upper left", ncols=len(labels), frameon=False, handlelength=1.6)
    figure.supxlabel("window γ (tokens)", fontsize="medium", color=INK)
    figure.supylabel("speed-up over plain decoding", fontsize="medium", color=INK)
    return figure


def _draw_ratio(panel: Axes, ratio_plan: RatioPlan) -> None:
    from matplotlib.ticker import MaxNLocator

    windows = ratio_plan.windows
    gammas = [window.gamma for window in windows]
    panel.plot(gammas, [w.parallel for w in windows], color=PARALLEL, lw=2.2, label="parallel speculative decoding")
    panel.plot(gammas, [w.vanilla for w in windows], color=VANILLA, lw=2.2, label="vanilla speculative decoding")
    best = f"γ* = {ratio_plan.gamma}, k = {ratio_plan.k}: {ratio_plan.speedup:.2f}×"
    _mark(
        panel, ratio_plan.vanilla_gamma, ratio_plan.vanilla_speedup, f"{ratio_plan.vanilla_speedup:.2f}×", VANILLA, -15
    )
    _mark(panel, ratio_plan.gamma, ratio_plan.speedup, best, PARALLEL, 9, weight="bold")
    panel.axhline(1, color=INK, linewidth=0.9, linestyle=(0, (1, 2)))
    panel.set_title(
        f"prune ratio {ratio_plan.ratio:g}  ·  c = {ratio_plan.c:.1f}  ·  β = {ratio_plan.acceptance:.2f}",
        loc="left", fontsize="medium", color=INK, pad=8,
    )  # fmt: skip
    panel.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    panel.yaxis.set_major_formatter("{x:g}×")
    panel.margins(y=0.12)
    plain_panel(panel)


def _mark(
    panel: Axes,
    gamma: int,
    speedup: float,
    text: str,
    color: str,
    above: int,
    weight: Literal["normal", "bold"] = "normal",
) -> None:
    """A point, and a text ``above`` printer's points above it, inside the panel."""
    low, high = panel.get_xlim()
    place = (gamma - low) / (high - low)
    side: Literal["left", "center", "right"] = "left" if place < 0.2 else "right" if place > 0.8 else "center"
    panel.plot(gamma, speedup, marker="o", markersize=7, color=color, markeredgecolor="white", markeredgewidth=1)
    panel.annotate(
        text, (gamma, speedup), xytext=(0, above), textcoords="offset points", ha=side, color=color, fontweight=weight
    )
