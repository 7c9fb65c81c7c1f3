"""``python -m benchmarks``: see README.md in this folder."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from benchmarks.padding import PADDING, pad_layers, padded_arguments
from pvlm.cli import main as pvlm_main
from pvlm.config import bundled
from pvlm.errors import PvlmError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command. Exit status: 0; 1 after an error or if tokens differ; 2 for invalid arguments."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__, allow_abbrev=False)
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    bench = commands.add_parser(
        "bench",
        help="pvlm bench, or pvlm bench scaling, with a padded target",
        description="All other arguments are those of `pvlm bench` and `pvlm bench scaling`.",
        allow_abbrev=False,
    )
    bench.add_argument(
        "--pad-layers", type=int, required=True, metavar="K", help=f"decoder layers to append to the target: {PADDING}"
    )
    bench.add_argument("--target", default=bundled("target"), help="checkpoint directory (default: the bundled target)")
    bench.add_argument("--draft", default=bundled("draft"), help="checkpoint of the draft (default: the bundled draft)")
    bench.add_argument("--early-layer", type=int, metavar="L", help="default: by the unpadded depth")
    bench.set_defaults(run=run_bench)
    pad = commands.add_parser("pad", help=f"write a padded checkpoint: {PADDING}")
    pad.add_argument("folder", metavar="FOLDER", help="folder to write; it must not exist yet")
    pad.add_argument("--layers", type=int, required=True, metavar="K", help="decoder layers to append")
    pad.add_argument("--target", default=bundled("target"), help="checkpoint directory (default: the bundled target)")
    pad.set_defaults(run=run_pad)
    options, rest = parser.parse_known_args(arguments)
    if rest and options.run is run_pad:
        parser.error(f"unknown arguments: {' '.join(rest)}")
    try:
        status: int = options.run(options, rest)
        return status
    except PvlmError as error:
        print(f"benchmarks: error: {error}", file=sys.stderr)
        return 1


def run_bench(options: argparse.Namespace, rest: Sequence[str]) -> int:
    with padded_arguments(options.target, options.draft, options.pad_layers, options.early_layer) as padded:
        return pvlm_main(["bench", *rest, *padded])


def run_pad(options: argparse.Namespace, rest: Sequence[str]) -> int:
    folder = pad_layers(options.target, options.folder, options.layers)
    print(f"{folder}: {options.layers} layers appended: {PADDING}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
