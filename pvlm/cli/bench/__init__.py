"""``pvlm bench``: the measurements that the documentation quotes."""

from __future__ import annotations

import argparse

from pvlm.cli.bench import adaptive, emulated, pruning, sessions


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    bench = commands.add_parser("bench", help="measure")
    what = bench.add_subparsers(dest="what", metavar="WHAT", required=True)
    for measurement in (emulated, adaptive, sessions, pruning):
        measurement.add_parser(what)
