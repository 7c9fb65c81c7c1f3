"""``pvlm bench repeats``."""

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
from pvlm.cli.options import Output
from pvlm.cli.plotting import machine
from pvlm.telemetry.figures import number

if TYPE_CHECKING:
    from rich.table import Table

    from pvlm.bench.repeats import RepeatsRow


def register(group: typer.Typer) -> None:
    command(group, "repeats")(repeats)


def repeats(
    *,
    pairs: Annotated[list[str] | None, choice("--pairs", "all_pairs")] = None,
    frames: Annotated[
        list[int] | None,
        option("--frames", metavar="N...", help="frames of the bundled pair's videos (default: 64 128)"),
    ] = None,
    tokens: Annotated[int, option("--tokens", metavar="N", help="tokens of each answer", show_default=True)] = 64,
    rounds: Annotated[int, rounds_option()] = 3,
    time_scale: TimeScale = 0.1,
    backend: BundledBackend = None,
    emulation: Emulation,
    output: Output,
) -> int:
    """Measure the time to the first token of further questions about a video, compared with the first question.

    Exit status 1 if an answer's tokens are not those of an engine that keeps nothing.
    """
    from pvlm.bench.repeats import FRAME_COUNTS, NAMES, measure_repeats
    from pvlm.cli.bundled import bundled_clips, clips_folder

    with clips_folder() as folder:
        rows = run_measurement(
            lambda _: measure_repeats(
                chosen(pairs, NAMES),
                str(folder / bundled_clips()[-1].file),
                frames=frames or FRAME_COUNTS,
                tokens=tokens,
                rounds=rounds,
                time_scale=time_scale,
                backend=backend,
                transport=emulation.transport,
            ),
            output,
        )
    return report(rows, [_table(rows)], json=emulation.json, lines=_conclusions(rows))


def _table(rows: Sequence[RepeatsRow]) -> Table:
    return table_of(
        "time to the first token, of further questions against the first",
        rows,
        {
            "pair": lambda row: row.pair,
            "frames": lambda row: "" if row.frames is None else str(row.frames),
            "first s": lambda row: number(row.first_s, 3),
            "again s": lambda row: number(row.again_s, 3),
            "ratio": lambda row: f"{number(row.ratio, 3)}{'' if row.passed else ' !'}",
            "cached": lambda row: f"{row.cached_tokens}/{row.prompt_tokens}",
            "acceptance": lambda row: f"{number(row.acceptance)}/{number(row.fresh_acceptance)}",
            "rounds": lambda row: " ".join(number(ratio, 3) for ratio in sorted(row.ratios)),
            "same": same,
        },
        text=("pair", "rounds"),
    )


def _conclusions(rows: Sequence[RepeatsRow]) -> Iterator[str]:
    from pvlm.bench.repeats import NOT_ABOVE

    backends = ", ".join(dict.fromkeys(row.backend for row in rows))
    yield f"{machine()}; backend {backends}; transport {rows[0].transport}; !: above {NOT_ABOVE:g}"
    yield "first, again: from the call to the first token, with the reading of the file; times are the models' own"
    yield "cached: tokens of the last prompt whose rows the target had kept"
    yield "acceptance: of further questions, with the draft's earlier view of the video, and with a new one"
    yield "same: whether each answer is that of an engine that keeps nothing"
