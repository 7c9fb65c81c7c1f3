"""``pvlm bench scaling``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from importlib.resources import as_file, files
from typing import TYPE_CHECKING

from rich.table import Table

from pvlm.bench.scaling import FRAMES, ScalingRow, measure_scaling
from pvlm.cli.bench.common import add_measurement_options, report, run_measurement, same, table_of
from pvlm.cli.console import quiet_logs
from pvlm.cli.options import engine_settings
from pvlm.cli.plotting import INK, PARALLEL, VANILLA, check_plot, new_figure, plain_panel
from pvlm.config import engine_config
from pvlm.telemetry.figures import number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BUNDLED_CLIP = "eight-scenes.mp4"
ALONE = "#7a9ac0"


def add_parser(what: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    scaling = what.add_parser("scaling", help="prefill, pass times, speed-up and memory against the number of frames")
    scaling.add_argument("--video", help="a video with fewer frames is slowed down (default: the longest bundled clip)")
    scaling.add_argument(
        "--frames", nargs="+", type=int, default=FRAMES, metavar="N",
        help=f"default: {' '.join(map(str, FRAMES))}",
    )  # fmt: skip
    add_measurement_options(scaling, rounds=5, max_tokens=64, plot="all of it over the number of frames")
    scaling.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Exit status 1 if an answer's tokens are not those of plain decoding."""
    quiet_logs(False)
    check_plot(options.plot)
    config = engine_config(engine_settings(options))
    with as_file(files("pvlm") / "bundled" / "clips" / BUNDLED_CLIP) as bundled_clip:
        rows = run_measurement(
            lambda on_turn: measure_scaling(
                config,
                options.video or str(bundled_clip),
                options.question,
                frames=options.frames,
                rounds=options.rounds,
                max_tokens=options.max_tokens,
                note=options.note,
                on_turn=on_turn,
            )
        )
    return report(options, rows, [_table(rows)], lines=_notes(rows), draw=draw)


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
