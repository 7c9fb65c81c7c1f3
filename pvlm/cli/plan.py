"""``pvlm plan``: predicted speed-ups and windows, as a table and as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from pvlm.cli.commands import MEASURING, Options, command, option
from pvlm.cli.interruption import run_async
from pvlm.cli.options import (
    DESCRIBE,
    DraftView,
    JsonFile,
    Models,
    Output,
    Places,
    PlotFile,
    Pruner,
    Reading,
    Sampling,
    VideoPart,
    settings,
)
from pvlm.cli.plotting import (
    INK,
    PARALLEL,
    PREPARED,
    VANILLA,
    add_caption,
    check_plot,
    new_figure,
    pair_and_machine,
    plain_panel,
    save_plot,
)
from pvlm.errors import OptionError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from rich.table import Table

    from pvlm.bench.planning import PairFigures, RatioPlan

RATIOS = (0.0, 0.5, 0.9)
BY_HAND, MEASURED = "Figures by hand", "Measured figures"
"""Panels of the help."""
PANELS_A_ROW = 3
SYMBOLS = (
    "c = T_p / T_q: the target's time for a pass over the draft's time for a token. β: accepted of the drafted tokens "
    "that are tested. s*: the best window with prepared outcomes. k: drafted tokens that the target waits for after a "
    "rejection. Dotted line: plain decoding."
)


@dataclass(frozen=True, kw_only=True)
class Given(Options):
    """Figures by hand: words as in `_pairs`."""

    target_ms: Annotated[
        list[str] | None,
        option("--target-ms", metavar="MS...", help="T_p in ms, or T_p(n) as 1=420 10=431", panel=BY_HAND),
    ] = None
    draft_ms: Annotated[
        list[str] | None,
        option("--draft-ms", metavar="MS...", help="T_q in ms, or by prune ratio as 0=78.3 0.9=46.6", panel=BY_HAND),
    ] = None
    acceptance: Annotated[
        list[str] | None,
        option(
            "--acceptance",
            metavar="B...",
            help="acceptance rate (beta) of tested tokens, or by prune ratio",
            panel=BY_HAND,
        ),
    ] = None
    accepted_length: Annotated[
        list[str] | None,
        option(
            "--accepted-length",
            metavar="M...",
            help="instead of --acceptance: accepted tokens a rejection, M = beta/(1-beta)",
            panel=BY_HAND,
        ),
    ] = None


def register(group: typer.Typer) -> None:
    command(group, "plan", MEASURING)(plan)


def plan(
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="VIDEO [QUESTION]", help="with --measure (default: a bundled clip)", show_default=False),
    ] = None,
    *,
    given: Given,
    measure: Annotated[bool, option("--measure", help="measure the pair on a video", panel=MEASURED)] = False,
    ratios: Annotated[
        list[float] | None,
        option("--ratios", metavar="R...", help="prune ratios to measure (default: 0 0.5 0.9)", panel=MEASURED),
    ] = None,
    rounds: Annotated[
        int, option("--rounds", metavar="N", help="repeat the measurement", panel=MEASURED, show_default=True)
    ] = 1,
    gamma_max: Annotated[int, option("--gamma-max", metavar="N", help="largest window", show_default=True)] = 16,
    branch_cost: Annotated[
        float,
        option(
            "--branch-cost",
            metavar="SHARE",
            help="what a prepared window adds to a step of the draft",
            show_default=True,
        ),
    ] = 0.02,
    json: JsonFile = None,
    plot: PlotFile = None,
    output: Output,
    models: Models,
    places: Places,
    pruner: Pruner,
    view: DraftView,
    reading: Reading,
    part: VideoPart,
    sampling: Sampling,
) -> int:
    """Predict the speed-up over plain decoding for every window.

    The figures are given (--target-ms, --draft-ms, and --acceptance or --accepted-length) or measured (--measure).
    Models, devices and the other options count with --measure.
    """
    from pvlm.bench.planning import plan as predict
    from pvlm.cli.console import ResultConsole, configure_logs, write_json
    from pvlm.config import engine_config

    configure_logs(output.verbose)
    check_plot(plot)
    engine = settings(models, places, pruner, view, reading)
    console = ResultConsole()
    by_hand = [flag for flag, words_given in _flags(given).items() if words_given]
    if not measure:
        if words:
            raise OptionError(f"'{words[0]}' is a video to measure: add --measure")
        figures, source = _given_figures(given), "given"
    elif by_hand:
        raise OptionError(f"--measure and {by_hand[0]} exclude each other: use one of them")
    else:
        asked = settings(part, sampling)
        figures = run_async(lambda: _measured_figures(words or [], ratios or RATIOS, rounds, engine, asked, output))
        source = "measured"
    plans = predict(figures, gamma_max, branch_cost)
    for line in _report(figures, plans, source):
        console.print(line)
    if len(plans) > 1 and source == "given" and len(given.acceptance or given.accepted_length or []) == 1:
        console.print("The one given acceptance rate counts for every prune ratio.")
    if json:
        write_json(json, {"source": source, "target_ms": figures.target_ms, "ratios": plans})
    if plot:
        figure = draw(plans)
        origin = [pair_and_machine(engine_config(engine)), f"n = {rounds} rounds."] if measure else ["Times by hand."]
        add_caption(figure, [SYMBOLS, " ".join(origin)])
        save_plot(plot, figure)
    return 0


# ---- figures ------------------------------------------------------------------------------------------------------


def _flags(given: Given) -> dict[str, list[str]]:
    """The words of each option."""
    return {f"--{one.name.replace('_', '-')}": getattr(given, one.name) or [] for one in fields(given)}


def _given_figures(given: Given) -> PairFigures:
    from pvlm.bench.planning import PairFigures
    from pvlm.speculation.theory import acceptance_from_length

    flags = _flags(given)
    for flag in ("--target-ms", "--draft-ms"):
        if not flags[flag]:
            raise OptionError(f"{flag} is missing: give the pair's figures, or use --measure")
    if bool(given.acceptance) == bool(given.accepted_length):
        raise OptionError("give one of --acceptance and --accepted-length")
    curve = _pairs(flags["--target-ms"], "--target-ms", "1")
    if odd := [n for n in curve if n != int(n)]:
        raise OptionError(f"--target-ms: a pass over {odd[0]:g} tokens: it must be a whole number")
    draft_ms = _pairs(flags["--draft-ms"], "--draft-ms", "0")
    flag = "--acceptance" if given.acceptance else "--accepted-length"
    texts = flags[flag]
    if len(texts) == 1 and "=" not in texts[0]:
        texts = [f"{ratio}={texts[0]}" for ratio in draft_ms]
    acceptance = _pairs(texts, flag, "0")
    if given.accepted_length:
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


async def _measured_figures(
    words: Sequence[str],
    ratios: Sequence[float],
    rounds: int,
    engine: dict[str, Any],
    options: dict[str, Any],
    output: Output,
) -> PairFigures:
    from pvlm.bench.planning import measure
    from pvlm.cli.bundled import bundled_clips, clips_folder
    from pvlm.cli.progress import ProgressDisplay
    from pvlm.config import engine_config

    if len(words) > 2:
        raise OptionError("--measure takes a video and a question: quote a question of several words")
    clip = bundled_clips()[0]
    with clips_folder() as folder, ProgressDisplay(quiet=output.quiet or output.verbose) as progress:
        video, question = str(folder / clip.file), clip.question
        if words:
            video, question = words[0], words[1] if len(words) > 1 else DESCRIBE
        return await measure(
            engine_config(engine),
            video,
            question,
            ratios=ratios,
            rounds=rounds,
            options=options,
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
        prepared = ratio_plan.prepared
        lines.append(
            f"  With {prepared.branches} outcomes prepared, s = {prepared.steps}, k = {prepared.wait}: "
            f"[bold]{prepared.speedup:.2f}×[/], if each adds {prepared.branch_cost:g} to a step of the draft and hits "
            f"are {' and '.join(f'{rate:.2f}' for rate in prepared.hit_rates)} (theorem 8)."
        )
        if ratio_plan.gamma == len(ratio_plan.windows):
            lines.append("  This is the largest window in the search: a larger --gamma-max may find a better one.")
        if ratio_plan.speedup < 1:
            lines.append("  No window pays here: plain decoding is faster.")
    return lines


def _table(ratio_plan: RatioPlan) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for column in ("γ", "vanilla SD", "parallel SD", "k", "theorem 7", "theorem 8", ""):
        table.add_column(column, justify="right" if column else "left")
    for window in ratio_plan.windows:
        best = window.gamma == ratio_plan.gamma
        table.add_row(
            str(window.gamma),
            f"{window.vanilla:.2f}×",
            f"{window.parallel:.2f}×",
            str(window.k),
            f"{window.theorem_7:.2f}×",
            f"{window.theorem_8:.2f}×",
            "← γ*" if best else "",
            style="bold green" if best else None,
        )
    return table


# ---- picture ------------------------------------------------------------------------------------------------------


def draw(plans: Sequence[RatioPlan]) -> Figure:
    """Speed-up over the window, a panel for each prune ratio, by each way of decoding, the best window marked."""
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
    panel.plot(gammas, [w.theorem_8 for w in windows], color=PREPARED, lw=2.2, label="parallel, with prepared outcomes")
    panel.plot(gammas, [w.parallel for w in windows], color=PARALLEL, lw=2.2, label="parallel speculative decoding")
    panel.plot(gammas, [w.vanilla for w in windows], color=VANILLA, lw=2.2, label="vanilla speculative decoding")
    _mark(
        panel, ratio_plan.vanilla_gamma, ratio_plan.vanilla_speedup, f"{ratio_plan.vanilla_speedup:.2f}×", VANILLA, -15
    )
    _mark(panel, ratio_plan.gamma, ratio_plan.speedup, f"{ratio_plan.speedup:.2f}×", PARALLEL, -15)
    prepared = ratio_plan.prepared
    text = f"s* = {prepared.steps}, k = {prepared.wait}: {prepared.speedup:.2f}×"
    _mark(panel, prepared.steps, prepared.speedup, text, PREPARED, 9, weight="bold")
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
