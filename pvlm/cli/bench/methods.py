"""``pvlm bench methods``, the measurement of ``pvlm bench``: all methods side by side on the same clips."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from pvlm.cli.bench.common import (
    MaxTokens,
    Measurement,
    choice,
    chosen,
    report,
    rounds_option,
    run_measurement,
    same,
    table_of,
)
from pvlm.cli.commands import command, option
from pvlm.cli.options import DraftView, Models, Output, Places, Pruning, Reading, Window, settings
from pvlm.cli.plotting import INK, PARALLEL, VANILLA, check_plot, new_figure, pair_and_machine, plain_panel
from pvlm.telemetry.figures import number

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from rich.console import RenderableType
    from rich.table import Table

    from pvlm.bench.comparison import MethodRow

BUNDLED_CLIPS = ("two-scenes.mp4", "four-scenes.mp4")
PEER = "#8a8a8a"
LOSSY = "#d9a441"


def register(group: typer.Typer) -> None:
    command(group, "methods")(methods)


def methods(
    *,
    videos: Annotated[
        list[str] | None, option("--videos", metavar="VIDEO...", help="default: two of the bundled clips")
    ] = None,
    names: Annotated[list[str] | None, choice("--methods", "contenders")] = None,
    frames: Annotated[int | None, option("--frames", metavar="N", help="frames to use (default: the target's)")] = None,
    rounds: Annotated[int, rounds_option()] = 5,
    max_tokens: MaxTokens = 256,
    measurement: Measurement,
    output: Output,
    models: Models,
    places: Places,
    window: Window = None,
    pruning: Pruning,
    view: DraftView,
    reading: Reading,
) -> int:
    """Measure every method side by side on the same clips, in turns.

    Exit status 1 if an answer's tokens are not those of plain decoding.
    """
    from pvlm.bench.comparison import measure_methods
    from pvlm.bench.methods import METHODS, contenders, read_clip
    from pvlm.cli.bundled import clips_folder
    from pvlm.config import engine_config

    check_plot(measurement.plot)
    compared = contenders(chosen(names, METHODS))
    config = engine_config(settings(models, places, pruning, view, reading, window=window))

    async def measure(on_turn: Callable[[float], None]) -> list[MethodRow]:
        with clips_folder() as folder:
            paths: Sequence[str | Path] = videos or [folder / name for name in BUNDLED_CLIPS]
            clips = [await read_clip(config, video, measurement.question, frames) for video in paths]
        return await measure_methods(
            config,
            clips,
            compared,
            rounds=rounds,
            max_tokens=max_tokens,
            note=measurement.note,
            on_turn=on_turn,
        )

    rows = run_measurement(measure, output)
    tables: list[RenderableType] = [_speed_table(rows), "", _figures_table(rows), ""]
    if any(row.lossy for row in rows):
        tables += [_lossy_table(rows), ""]
    return report(
        rows,
        tables,
        json=measurement.json,
        plot=measurement.plot,
        lines=conclusions(rows),
        draw=draw,
        caption=[*_symbols(rows), pair_and_machine(config)],
    )


# ---- text ---------------------------------------------------------------------------------------------------------


def _speed_table(rows: Sequence[MethodRow]) -> Table:
    first = rows[0]
    rows = [row for row in rows if not row.lossy]
    return table_of(
        f"speed-up over plain decoding, {first.clips} clips, {first.tokens} tokens, medians of {first.rounds} rounds",
        rows,
        {
            "method": lambda row: row.method,
            "decoding": lambda row: _times(row.speedup_vs_ar),
            "quartiles": lambda row: "–".join(number(value) for value in row.speedup_vs_ar_quartiles),
            "all cores": lambda row: _times(row.speedup_vs_ar_all_cores),
            "end to end": lambda row: _times(row.end_to_end_vs_ar),
            "theory": lambda row: _times(row.predicted),
            "same tokens": same,
        },
    )


def _lossy_table(rows: Sequence[MethodRow]) -> Table:
    """The methods whose target sees a part of the video."""
    from pvlm.bench.methods import WHOLE

    return table_of(
        f"a target that sees a part of the video: another answer (speed-up over {WHOLE})",
        [row for row in rows if row.lossy],
        {
            "method": lambda row: row.method,
            "decoding": lambda row: _times(row.speedup_vs_ar),
            "end to end": lambda row: _times(row.end_to_end_vs_ar),
            "prefill": lambda row: number(row.prefill_s, 3),
            "equal tokens": lambda row: f"{row.agreement:.0%}",
            "exact": lambda row: f"{row.exact_answers:.0%}",
        },
    )


def _figures_table(rows: Sequence[MethodRow]) -> Table:
    return table_of(
        "a mean answer, times in seconds",
        [row for row in rows if not row.lossy],
        {
            "method": lambda row: row.method,
            "tokens/s": lambda row: number(row.tokens_per_second, 0),
            "1st token": lambda row: number(row.time_to_first_token_s, 3),
            "prefill": lambda row: number(row.prefill_s, 3),
            "decode": lambda row: number(row.decode_s, 3),
            "β": lambda row: number(row.acceptance_rate, 3),
            "M": lambda row: number(row.mean_accepted_length, 1),
            "window": lambda row: number(row.window, 1),
            "peak MB": lambda row: number(row.peak_rss_mb, 0),
        },
    )


def conclusions(rows: Sequence[MethodRow]) -> list[str]:
    """Lines about method parallel, and about the meaning of the columns."""
    from pvlm.bench.methods import CONTENDERS, WHOLE

    by_name = {row.method: row for row in rows}
    lines = []
    if (own := by_name.get("parallel")) is not None:
        lines.append(_against_plain(own))
        plain = ("ar", "ar-all-cores", WHOLE)
        others = [row for row in rows if row.method not in plain and not row.lossy and not _is_ours(row)]
        if others:
            faster = ", ".join(f"{row.method} {own.speedup_vs_ar / row.speedup_vs_ar:.2f}×" for row in others)
            lines.append(f"parallel decodes faster than {faster}")
    if (curve := by_name["ar"].target_ms) is not None:
        listed = ", ".join(f"{n}: {ms:.2f}" for n, ms in sorted(curve.items()))
        lines.append(f"T_p(n), the target's time in ms for a pass over n tokens while the draft rests: {listed}")
    if note := rows[0].note:
        lines.append(note)
    lines.append(
        "decoding: over plain decoding (ar); all cores: over plain decoding on all cores; end to end: with the prefill"
    )
    lines.append(
        "theory: theorem 7 (parallel) or 4 (sd, specvlm, parallel-no-pd) at its best window, from the measured figures"
    )
    lines.append(
        "β: accepted of tested tokens; M: accepted tokens a rejection; window: drafted tokens of a pass that had any"
    )
    lines.append(
        "peak MB: resident while answering, with weights, over the method's processes (transformers: one process with "
        "both models)"
    )
    if any(row.lossy for row in rows):
        lines.append(
            "equal tokens: share of the tokens that equal those of plain decoding with the whole video, by position; "
            f"exact: share of the answers that equal it throughout; speed-ups over {WHOLE}, at the length of its answer"
        )
    lines += [f"{row.method}: {CONTENDERS[row.method].meaning}" for row in rows]
    return lines


def _against_plain(own: MethodRow) -> str:
    line = f"parallel: {own.speedup_vs_ar:.2f}× plain decoding"
    if own.speedup_vs_ar_all_cores is not None:
        line += f", {own.speedup_vs_ar_all_cores:.2f}× plain decoding on all cores"
    if own.of_predicted is not None and own.predicted is not None:
        line += f"; {own.of_predicted:.3f} of theorem 7, which says {own.predicted:.2f}×"
    if own.predicted_busy is not None:
        line += f" ({own.predicted_busy:.2f}× with the times of its own passes, while the draft works)"
    if own.coordination_share is not None:
        line += f"; {own.coordination_share:.0%} of its time lost between passes"
    return line


def _is_ours(row: MethodRow) -> bool:
    return row.method.startswith("parallel")


def _times(value: float | None) -> str:
    return number(value, 2, "×")


def _symbols(rows: Sequence[MethodRow]) -> list[str]:
    """What the picture shows, and of how much."""
    first = rows[0]
    return [
        f"Bars: medians of n = {first.rounds} rounds over {first.clips} clips, {first.tokens} tokens a round; thin "
        "lines: first to third quartile; dotted line: plain decoding on the target's cores (ar). "
        "◇ theory: theorem 7 (parallel) or 4 (sd, specvlm, parallel-no-pd), from this run's times and acceptance.",
        "Blue: pvlm's parallel decoding and its ablations; orange: other methods of pvlm; grey: transformers' loops; "
        "yellow: a target that sees a part of the video.",
    ]


# ---- picture ------------------------------------------------------------------------------------------------------


def draw(rows: Sequence[MethodRow]) -> Figure:
    """Two panels with a bar for each method: the speed-up in decoding with quartiles, and an answer's times."""
    figure = new_figure(10.4, 1.5 + 0.34 * len(rows))
    speed, time = figure.subplots(1, 2, sharey=True)
    places = range(len(rows))
    _draw_speed(speed, rows, places)
    prefill = [row.prefill_s for row in rows]
    time.barh(places, prefill, height=0.62, color="#b9c7d8", label="prefill")
    time.barh(places, [row.decode_s for row in rows], left=prefill, height=0.62, color=PARALLEL, label="decoding")
    for place, row in zip(places, rows, strict=True):
        total = row.prefill_s + row.decode_s
        time.annotate(f"{total:.2f}", (total, place), xytext=(5, 0), textcoords="offset points", va="center", color=INK)
    time.set_title("seconds for a mean answer", loc="left", fontsize="medium", color=INK)
    time.margins(x=0.12)
    for panel in (speed, time):
        plain_panel(panel, "x")
    speed.invert_yaxis()
    figure.legend(loc="outside upper right", ncols=3, frameon=False, labelcolor=INK)
    if note := rows[0].note:
        figure.supxlabel(note, fontsize="small", color=INK)
    return figure


def _draw_speed(panel: Axes, rows: Sequence[MethodRow], places: range) -> None:
    colors = [_color(row) for row in rows]
    speeds = [row.speedup_vs_ar for row in rows]
    low = [row.speedup_vs_ar - row.speedup_vs_ar_quartiles[0] for row in rows]
    high = [row.speedup_vs_ar_quartiles[1] - row.speedup_vs_ar for row in rows]
    panel.barh(places, speeds, xerr=(low, high), height=0.62, color=colors, error_kw={"ecolor": INK, "elinewidth": 1})
    longest = max(speeds)
    for place, row in zip(places, rows, strict=True):
        inside = row.speedup_vs_ar > 0.2 * longest
        panel.annotate(
            f"{row.speedup_vs_ar:.2f}×",
            (0 if inside else row.speedup_vs_ar_quartiles[1], place),
            xytext=(6, 0), textcoords="offset points", va="center", color="white" if inside else INK,
            fontweight="bold" if row.method == "parallel" else "normal",
        )  # fmt: skip
        panel.annotate(
            _remark(row), (row.speedup_vs_ar_quartiles[1], place),
            xytext=(6, 0), textcoords="offset points", va="center", color=INK,
        )  # fmt: skip
    predicted = [(row.predicted, place) for row, place in zip(rows, places, strict=True) if row.predicted is not None]
    if predicted:
        panel.plot(*zip(*predicted, strict=True), "D", markersize=5, color="white", markeredgecolor=INK, label="theory")
    panel.axvline(1, color=INK, linewidth=0.9, linestyle=(0, (1, 2)))
    panel.set_yticks(places, [row.method for row in rows])
    panel.set_title("speed-up over plain decoding", loc="left", fontsize="medium", color=INK)
    panel.xaxis.set_major_formatter("{x:g}×")
    panel.margins(x=0.06)


def _color(row: MethodRow) -> str:
    from pvlm.bench.methods import CONTENDERS

    if row.lossy:
        return LOSSY
    return PEER if CONTENDERS[row.method].loop else PARALLEL if _is_ours(row) else VANILLA


def _remark(row: MethodRow) -> str:
    if row.lossy:
        return f"{row.agreement:.0%} of the tokens"
    return "" if row.same_tokens else "other tokens!"
