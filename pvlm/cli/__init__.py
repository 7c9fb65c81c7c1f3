"""The command ``pvlm``. Each command is a module with `add_parser` and `run`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import pvlm
from pvlm.cli import answer, bench, demo, doctor, keys, plan, worker
from pvlm.errors import PvlmError

INTERRUPTED = 130


def build_parser() -> argparse.ArgumentParser:
    """The parser of the command line, with all commands."""
    parser = argparse.ArgumentParser(
        prog="pvlm",
        description="Answer questions about videos. A draft model proposes tokens, and the target model decides.",
    )
    parser.add_argument("--version", action="version", version=f"pvlm {pvlm.__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for command in (demo, answer, plan, bench, doctor, worker, keys):
        command.add_parser(commands)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command. Exit status: 0; 1 after an error, printed in one line; 2 after misuse; 130 after Ctrl-C."""
    options = build_parser().parse_args(arguments)
    try:
        status: int = options.run(options)
        return status
    except PvlmError as error:
        print(f"pvlm: error: {error}", file=sys.stderr)
        if error.__cause__ is not None and options.__dict__.get("verbose"):
            print(error.__cause__, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\npvlm: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        sys.stderr.close()
        return 1
