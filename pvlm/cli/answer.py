"""``pvlm answer VIDEO QUESTION``."""

from __future__ import annotations

import argparse
import sys

import anyio
import msgspec
from rich.console import Console

from pvlm.cli.console import ProgressDisplay, figures, quiet_logs
from pvlm.cli.options import add_answer_options, add_engine_options, answer_settings, engine_settings
from pvlm.engine import Engine
from pvlm.results import Answer


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("answer", help="answer a question about a video")
    parser.add_argument("video", metavar="VIDEO", help="path of a video")
    parser.add_argument("question", metavar="QUESTION")
    parser.add_argument("--json", action="store_true", help="print one object: text, tokens, finish_reason, stats")
    parser.add_argument("-v", "--verbose", action="store_true", help="show the log, and where an error came from")
    add_engine_options(parser)
    add_answer_options(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    quiet_logs(options.verbose)
    answer = anyio.run(_answer, options)
    if options.json:
        fields = {name: getattr(answer, name) for name in ("text", "tokens", "finish_reason", "stats")}
        sys.stdout.write(msgspec.json.format(msgspec.json.encode(fields).decode(), indent=2) + "\n")
    else:
        Console(stderr=True, highlight=False).print(figures(answer.stats))
    return 0


async def _answer(options: argparse.Namespace) -> Answer:
    with ProgressDisplay() as progress:
        engine = Engine.create(on_progress=progress.update, **engine_settings(options))
        async with engine.stream(options.video, options.question, **answer_settings(options)) as chunks:
            async for chunk in chunks:
                if not options.json:
                    sys.stdout.write(chunk.text)
                    sys.stdout.flush()
    if not options.json:
        sys.stdout.write("\n")
    return chunks.answer
