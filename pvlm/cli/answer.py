"""``pvlm answer VIDEO QUESTION``."""

from __future__ import annotations

import argparse
import sys

import anyio
import msgspec
from rich.console import Console

from pvlm.cli.console import ProgressDisplay, figures_table, quiet_logs, tell_of_remote_workers
from pvlm.cli.options import add_answer_options, add_engine_options, answer_settings, engine_settings
from pvlm.engine import Engine
from pvlm.results import Answer
from pvlm.trace import Trace, make_directory


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("answer", help="answer a question about a video")
    parser.add_argument("video", metavar="VIDEO", help="path of a video")
    parser.add_argument("question", metavar="QUESTION", help="the question, in quotes")
    parser.add_argument("--json", action="store_true", help="print one object: text, tokens, finish_reason, stats")
    parser.add_argument(
        "--trace", metavar="DIR",
        help="write pictures of the answer to DIR: timeline.html, timeline.json (for Perfetto) and frames.png",
    )  # fmt: skip
    parser.add_argument("-v", "--verbose", action="store_true", help="show the log, and the traceback of an error")
    add_engine_options(parser)
    add_answer_options(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    quiet_logs(options.verbose)
    trace = None
    if options.trace is not None:
        make_directory(options.trace)  # fails before any model is loaded
        trace = Trace()
    try:
        answer = anyio.run(_answer, options, trace)
    finally:  # the trace of a failed answer is the most useful one
        if trace is not None and trace.recorded:
            print(f"trace: {', '.join(map(str, trace.write(options.trace)))}", file=sys.stderr)
    if options.json:
        sys.stdout.write(msgspec.json.format(msgspec.json.encode(answer.to_dict()).decode(), indent=2) + "\n")
    else:
        Console(stderr=True, highlight=False).print(figures_table(answer.stats))
    return 0


async def _answer(options: argparse.Namespace, trace: Trace | None) -> Answer:
    with ProgressDisplay() as progress:
        engine = Engine.create(on_progress=progress.update, **engine_settings(options))
        settings = answer_settings(options)
        tell_of_remote_workers(engine.config)
        async with engine.stream(options.video, options.question, trace=trace, **settings) as chunks:
            async for chunk in chunks:
                if not options.json:
                    sys.stdout.write(chunk.text)
                    sys.stdout.flush()
    if not options.json:
        sys.stdout.write("\n")
    return chunks.answer
