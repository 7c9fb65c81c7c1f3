"""``pvlm bench device``."""

from __future__ import annotations

import argparse

from rich.console import Console
from rich.table import Table

from pvlm.bench.architectures import PAIRS
from pvlm.bench.device import DeviceReport, DeviceRow, measure_device
from pvlm.cli.bench.common import add_json_option, new_table
from pvlm.cli.console import quiet_logs, write_json
from pvlm.telemetry.figures import number


def add_parser(what: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    device = what.add_parser(
        "device",
        help="passes of full-size decoders with random weights on a device, beside transformers",
        description="Times decoders with the architectures of released models and random weights: no checkpoint is "
        "needed. Measures T_p over the tokens of a pass, T_q over the prune ratio, and the target's prefill alone and "
        "beside the draft's, for pvlm's own decoder and for transformers.",
    )
    device.add_argument(
        "--pair", choices=list(PAIRS), default=next(iter(PAIRS)), help=f"architectures (default: {next(iter(PAIRS))})"
    )
    device.add_argument("--device", default="cpu", help="the target's, such as cuda:0 (default: cpu)")
    device.add_argument("--draft-device", help="the draft's (default: the target's)")
    device.add_argument("--dtype", default="bfloat16", help="default: bfloat16")
    device.add_argument(
        "--video-tokens",
        type=int,
        default=25_088,
        metavar="M",
        help="video tokens of the prompt (default: 25088, 128 frames of 196)",
    )
    device.add_argument(
        "--tokens",
        nargs="+",
        type=int,
        default=list(range(1, 17)),
        metavar="N",
        help="tokens a pass (default: 1 to 16)",
    )
    device.add_argument(
        "--ratios", nargs="+", type=float, default=[0.0, 0.5, 0.75, 0.9], metavar="R",
        help="prune ratios; the draft's prefill uses the last one (default: 0 0.5 0.75 0.9)",
    )  # fmt: skip
    device.add_argument("--window", type=int, default=5, metavar="N", help="tokens drafted in a call (default: 5)")
    device.add_argument("--rounds", type=int, default=10, metavar="N", help="times are medians of N (default: 10)")
    device.add_argument(
        "--backends", nargs="+", default=["torch", "hf"], metavar="NAME", help="default: torch hf (transformers)"
    )
    device.add_argument("--threads", type=int, help="on the CPU")
    add_json_option(device)
    device.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    quiet_logs(False)
    progress, console = Console(stderr=True, highlight=False), Console(highlight=False)
    report = measure_device(
        options.pair,
        device=options.device,
        draft_device=options.draft_device,
        dtype=options.dtype,
        video_tokens=options.video_tokens,
        tokens=options.tokens,
        ratios=options.ratios,
        window=options.window,
        rounds=options.rounds,
        backends=options.backends,
        threads=options.threads,
        on_row=lambda row: progress.print(f"{row.backend}: {_name(row)}: {row.ms:.3g} ms"),
    )
    console.print(_table(report))
    console.print(
        f"random weights in {report.dtype}; target on {report.devices['target']}, draft on {report.devices['draft']}; "
        f"decoders only: a text of {report.video_tokens} tokens stands for the video, and the vision tower does not "
        "run",
        soft_wrap=True,
    )
    if options.json:
        write_json(options.json, report)
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
