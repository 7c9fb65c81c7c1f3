"""``pvlm bench scaling``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from pvlm.cli.bench.common import MaxTokens, Measurement, report, rounds_option, run_measurement, same, table_of
from pvlm.cli.commands import command, option
from pvlm.cli.options import DraftView, Models, Output, Places, Pruning, Reading, Window, settings
from pvlm.cli.plotting import INK, PARALLEL, VANILLA, check_plot, new_figure, pair_and_machine, plain_panel
from pvlm.telemetry.figures import number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from rich.table import Table

    from pvlm.bench.scaling import ScalingRow

BUNDLED_CLIP = "eight-scenes.mp4"
ALONE = "#7a9ac0"


def register(group: typer.Typer) -> None:
    command(group, "scaling")(scaling)


def scaling(
    *,
    video: Annotated[
        str | None,
        option(
            "--video",
            metavar="VIDEO",
            help="a video with fewer frames is slowed down (default: the longest bundled clip)",
        ),
    ] = None,
    frames: Annotated[list[int] | None, option("--frames", metavar="N...", help="default: 8 16 32 64 128")] = None,
    rounds: Annotated[int, rounds_option()] = 5,
    max_tokens: MaxTokens = 64,
    measurement: Measurement,
    output: Output,
    models: Models,
    places: Places,
    window: Window = None,
    pruning: Pruning,
    view: DraftView,
    reading: Reading,
) -> int:
    """Measure prefill, pass times, speed-up and memory over the number of frames.

    Exit status 1 if an answer's tokens are not those of plain decoding.
    """
    from pvlm.bench.scaling import FRAMES, measure_scaling
    from pvlm.cli.bundled import clips_folder
    from pvlm.config import engine_config

    check_plot(measurement.plot)
    config = engine_config(settings(models, places, pruning, view, reading, window=window))
    with clips_folder() as folder:
        rows = run_measurement(
            lambda on_turn: measure_scaling(
                config,
                video or str(folder / BUNDLED_CLIP),
                measurement.question,
                frames=frames or FRAMES,
                rounds=rounds,
                max_tokens=max_tokens,
                note=measurement.note,
                on_turn=on_turn,
            ),
            output,
        )
    return report(
        rows,
        [_table(rows)],
        json=measurement.json,
        plot=measurement.plot,
        lines=_notes(rows),
        draw=draw,
        caption=[
            f"Points: medians of n = {rounds} rounds, answers of {max_tokens} tokens; shaded: first to third quartile. "
            "End to end: prefill and decoding. Dotted line: plain decoding. T_p: a pass of the target over one token; "
            "T_q: a token of the draft while the target works.",
            pair_and_machine(config),
        ],
    )


def _table(rows: Sequence[ScalingRow]) -> Table:
    return table_of(
        f"medians of {rows[0].rounds} rounds",
        rows,
        {
            "frames": lambda row: str(row.frames),
            "prompt": lambda row: str(row.prompt_tokens),
            "prefill s": lambda row: number(row.prefill_s, 3),
            "T_p ms": lambda row: number(row.target_pass_ms, 2),
            "T_q ms": lambda row: number(row.draft_token_ms, 2),
            "β": lambda row: number(row.acceptance_rate, 3),
            "decoding": lambda row: number(row.speedup_vs_ar, 2, "×"),
            "end to end": lambda row: number(row.end_to_end_vs_ar, 2, "×"),
            "MB": lambda row: number(row.peak_rss_mb, 0),
            "same tokens": same,
        },
    )


def _notes(rows: Sequence[ScalingRow]) -> list[str]:
    note = rows[0].note
    return [
        "decoding, end to end: parallel decoding's speed-up over plain decoding on the target's cores",
        "T_p: a pass of plain decoding; T_q: a draft token while the target works; β: accepted of tested tokens",
        "MB: most memory resident while answering, draft and target",
        *([note] if note else []),
    ]


def draw(rows: Sequence[ScalingRow]) -> Figure:
    """Four panels over the number of frames: prefill, pass times, speed-ups, memory."""
    figure = new_figure(9.6, 6.6)
    prefill, passes, speed, memory = figure.subplots(2, 2, sharex=True).flat
    _lines(
        prefill, rows, "prefill, seconds",
        {
            "parallel": ([row.prefill_s for row in rows], PARALLEL),
            "plain decoding": ([row.ar_prefill_s for row in rows], VANILLA),
            "plain decoding, all cores": ([row.ar_all_cores_prefill_s for row in rows], ALONE),
        },
    )  # fmt: skip
    _lines(
        passes, rows, "time a pass, ms",
        {
            "target, one token ($T_p$)": ([row.target_pass_ms for row in rows], VANILLA),
            "draft, one token ($T_q$)": ([row.draft_token_ms for row in rows], PARALLEL),
        },
    )  # fmt: skip
    _lines(
        speed, rows, "speed-up of parallel decoding",
        {
            "decoding": ([row.speedup_vs_ar for row in rows], PARALLEL),
            "end to end": ([row.end_to_end_vs_ar for row in rows], VANILLA),
            "end to end, against all cores": ([row.end_to_end_vs_ar_all_cores for row in rows], ALONE),
        },
    )  # fmt: skip
    for values, color in (
        ([row.speedup_vs_ar_quartiles for row in rows], PARALLEL),
        ([row.end_to_end_vs_ar_quartiles for row in rows], VANILLA),
        ([row.end_to_end_vs_ar_all_cores_quartiles for row in rows], ALONE),
    ):
        low, high = zip(*values, strict=True)
        speed.fill_between([row.frames for row in rows], low, high, color=color, alpha=0.15, linewidth=0)
    speed.axhline(1, color=INK, linewidth=0.9, linestyle=(0, (1, 2)))
    speed.yaxis.set_major_formatter("{x:g}×")
    _lines(
        memory, rows, "peak memory, MB",
        {
            "draft and target": ([row.peak_rss_mb for row in rows], PARALLEL),
            "target alone": ([row.ar_peak_rss_mb for row in rows], VANILLA),
        },
    )  # fmt: skip
    for panel in (prefill, passes, memory):
        panel.set_ylim(bottom=0)
    labels = [
        f"frames ({rows[0].video_tokens // rows[0].frames} video tokens each)",
        rows[0].note,
    ]
    figure.supxlabel("\n".join(label for label in labels if label), fontsize="small", color=INK)
    return figure


def _lines(panel: Axes, rows: Sequence[ScalingRow], title: str, lines: dict[str, tuple[list[float], str]]) -> None:
    frames = [row.frames for row in rows]
    for label, (values, color) in lines.items():
        panel.plot(frames, values, color=color, lw=2.2, marker="o", markersize=5, markeredgecolor="white", label=label)
    panel.set_title(title, loc="left", fontsize="medium", color=INK)
    panel.set_xscale("log", base=2)
    panel.set_xticks(frames, [str(count) for count in frames])
    panel.minorticks_off()
    panel.legend(frameon=False, labelcolor=INK, fontsize="small")
    plain_panel(panel)
