"""``pvlm bench pad``."""

from __future__ import annotations

import argparse

from pvlm.bench.padding import PADDING, pad_layers
from pvlm.config import bundled


def add_parser(what: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    pad = what.add_parser("pad", help=f"write a padded target: {PADDING}")
    pad.add_argument("folder", metavar="FOLDER", help="where to; it must not exist yet")
    pad.add_argument("--layers", type=int, required=True, metavar="K", help="decoder layers to append")
    pad.add_argument("--target", help="checkpoint directory to pad (default: the bundled target)")
    pad.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    folder = pad_layers(options.target or bundled("target"), options.folder, options.layers)
    print(f"{folder}: {options.layers} layers appended: {PADDING}")
    return 0
