"""``pvlm bench``: all methods side by side, and the other measurements that the documentation quotes."""

from __future__ import annotations

import argparse

from pvlm.cli.bench import adaptive, device, emulated, methods, passes, pruning, scaling, sessions


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    bench = commands.add_parser(
        "bench",
        help="measure",
        description="Without WHAT: every method side by side on the same clips, in turns.",
    )
    methods.add_options(bench)
    what = bench.add_subparsers(dest="what", metavar="WHAT", title="other measurements")
    for measurement in (scaling, passes, device, pruning, emulated, adaptive, sessions):
        measurement.add_parser(what)
