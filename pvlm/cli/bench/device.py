"""``pvlm bench device``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from pvlm.cli.bench.common import new_table, rounds_option
from pvlm.cli.commands import command, option
from pvlm.cli.interruption import closing_on_interrupt
from pvlm.cli.names import completing
from pvlm.cli.options import JsonFile, Output
from pvlm.telemetry.figures import number

if TYPE_CHECKING:
    from rich.table import Table

    from pvlm.bench.device import DeviceReport, DeviceRow

TOKENS = tuple(range(1, 17))
RATIOS = (0.0, 0.5, 0.75, 0.9)
BACKENDS = ("torch", "hf")


def register(group: typer.Typer) -> None:
    command(group, "device")(device)


def device(
    *,
    pair: Annotated[
        str,
        option(
            "--pair",
            metavar="NAME",
            help="architectures: {architectures}",
            show_default=True,
            kind="architectures",
        ),
    ] = "llava-onevision-0.5b-7b",
    device: Annotated[
        str, option("--device", metavar="DEVICE", help="the target's, such as cuda:0", show_default=True)
    ] = "cpu",
    draft_device: Annotated[
        str | None, option("--draft-device", metavar="DEVICE", help="the draft's (default: the target's)")
    ] = None,
    dtype: Annotated[str, option("--dtype", metavar="TYPE", help="of the weights", show_default=True)] = "bfloat16",
    video_tokens: Annotated[
        int, option("--video-tokens", metavar="M", help="of the prompt: 128 frames of 196", show_default=True)
    ] = 25_088,
    tokens: Annotated[list[int] | None, option("--tokens", metavar="N...", help="a pass (default: 1 to 16)")] = None,
    ratios: Annotated[
        list[float] | None,
        option(
            "--ratios",
            metavar="R...",
            help="prune ratios; the draft's prefill uses the last one (default: 0 0.5 0.75 0.9)",
        ),
    ] = None,
    window: Annotated[int, option("--window", metavar="N", help="tokens drafted in a call", show_default=True)] = 5,
    rounds: Annotated[int, rounds_option()] = 10,
    backends: Annotated[
        list[str] | None,
        option(
            "--backends",
            metavar="NAME...",
            help="default: torch hf (transformers)",
            autocompletion=completing("backends"),
        ),
    ] = None,
    threads: Annotated[int | None, option("--threads", metavar="N", help="on the CPU")] = None,
    json: JsonFile = None,
    output: Output,
) -> int:
    """Time decoders with the architectures of released models and random weights, beside transformers.

    No checkpoint is needed. Measures T_p over the tokens of a pass, T_q over the prune ratio, and the target's prefill
    alone and beside the draft's.
    """
    from pvlm.bench.device import measure_device
    from pvlm.cli.console import ResultConsole, configure_logs, write_json
    from pvlm.cli.progress import ProgressDisplay

    configure_logs(output.verbose)
    console = ResultConsole()
    with closing_on_interrupt(), ProgressDisplay(quiet=output.quiet or output.verbose) as progress:
        report = measure_device(
            pair,
            device=device,
            draft_device=draft_device,
            dtype=dtype,
            video_tokens=video_tokens,
            tokens=tokens or TOKENS,
            ratios=ratios or RATIOS,
            window=window,
            rounds=rounds,
            backends=backends or BACKENDS,
            threads=threads,
            on_row=lambda row: None if output.quiet else progress.note(f"{row.backend}: {_name(row)}: {row.ms:.3g} ms"),
        )
    console.print(_table(report))
    console.print(
        f"random weights in {report.dtype}; target on {report.devices['target']}, draft on {report.devices['draft']}; "
        f"decoders only: a text of {report.video_tokens} tokens stands for the video, and the vision tower does not "
        "run",
        soft_wrap=True,
    )
    if json:
        write_json(json, report)
    return 0


def _name(row: DeviceRow) -> str:
    match row.what:
        case "pass":
            return f"target, pass over {row.tokens}"
        case "drafted token":
            return f"draft, a token in windows of {row.tokens}, ratio {row.ratio:g}"
        case "prefill":
            return "target, prefill"
    return f"target, prefill beside the draft's at ratio {row.ratio:g}"


def _table(report: DeviceReport) -> Table:
    """A line for each measurement, a column for each backend; for two backends also the ratio of their times."""
    by_name: dict[str, dict[str, DeviceRow]] = {}
    for row in report.rows:
        by_name.setdefault(_name(row), {})[row.backend] = row
    backends = list(dict.fromkeys(row.backend for row in report.rows))
    ratio = [f"{backends[0]} / {backends[1]}"] if len(backends) == 2 else []
    table = new_table(f"{report.pair} (ms)", ["method", "rows", *backends, *ratio])
    for name, rows in by_name.items():
        times = [rows[backend].ms for backend in backends]
        quotient = [number(times[0] / times[1])] if ratio else []
        table.add_row(name, str(next(iter(rows.values())).rows), *(number(ms, 3) for ms in times), *quotient)
    return table
