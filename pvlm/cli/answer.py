"""``pvlm answer VIDEO QUESTION``."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pvlm.cli.commands import ASKING, command, option
from pvlm.cli.interruption import run_async
from pvlm.cli.options import AnswerSettings, EngineSettings, Output, settings
from pvlm.errors import OptionError

if TYPE_CHECKING:
    from pvlm.results import Answer
    from pvlm.telemetry.recorder import Recorder
    from pvlm.trace import Trace


def register(group: typer.Typer) -> None:
    command(group, "answer", ASKING)(answer)


def answer(
    video: Annotated[str, typer.Argument(metavar="VIDEO", help="path of a video")],
    question: Annotated[str, typer.Argument(metavar="QUESTION", help="the question, in quotes; -: standard input")],
    *,
    system: Annotated[
        str | None, option("--system", metavar="TEXT", help="instructions for the model, before the question")
    ] = None,
    as_json: Annotated[bool, option("--json", help="print one object: text, tokens, finish_reason, stats")] = False,
    trace: Annotated[
        str | None,
        option("--trace", metavar="DIR", help="write pictures of the answer: timeline.html, timeline.json, frames.png"),
    ] = None,
    output: Output,
    engine: EngineSettings,
    options: AnswerSettings,
) -> int:
    """Answer a question about a video.

    The text is streamed to standard output, and figures follow on standard error. The bundled pair, which knows drawn
    shapes only, answers unless --target names a model.
    """
    from pvlm.cli.console import configure_logs, figures_table, note, notes
    from pvlm.trace import Trace, make_directory

    configure_logs(output.verbose)
    question = _question(question)
    recorder = None
    if trace is not None:
        make_directory(trace)  # fails before any model is loaded
        recorder = Trace()
    try:
        asked = _asked(video, question, system)
        given = settings(engine), settings(options)
        found = run_async(lambda: _stream(question, asked, *given, recorder, output, show_text=not as_json))
    finally:  # the trace of a failed answer is the most useful one
        if trace is not None and recorder is not None and recorder.recorded:
            note(f"trace: {', '.join(map(str, recorder.write(trace)))}")
    if as_json:
        _write_json(found)
    elif not output.quiet:
        notes().print(figures_table(found.stats))
    return 0


def _question(given: str) -> str:
    """The question, read from standard input for ``-``. Raises OptionError if it is not UTF-8."""
    if given != "-":
        return given
    try:
        return sys.stdin.buffer.read().decode().strip()
    except UnicodeDecodeError as error:
        raise OptionError(f"the question on standard input is not UTF-8: {error}") from None


def _asked(video: str, question: str, system: str | None) -> dict[str, Any]:
    """The arguments of `Engine.stream`. Raises OptionError."""
    from pvlm.config import check_question

    if system is None:
        return {"video": video, "question": question}
    check_question(question)  # a text in messages may be longer
    parts = [{"type": "video", "video": video}, {"type": "text", "text": question}]
    return {"messages": [{"role": "system", "content": system}, {"role": "user", "content": parts}]}


async def _stream(
    question: str,
    asked: dict[str, Any],
    engine: dict[str, Any],
    options: dict[str, Any],
    trace: Trace | None,
    output: Output,
    *,
    show_text: bool,
) -> Answer:
    from pvlm.cli.bundled import LimitNote
    from pvlm.cli.console import note_remote_workers
    from pvlm.cli.progress import ProgressDisplay
    from pvlm.cli.streams import write
    from pvlm.config import BUNDLED
    from pvlm.engine import Engine

    with ProgressDisplay(quiet=output.quiet or output.verbose) as progress:
        opened = Engine.create(on_progress=progress.update, **engine)
        note_remote_workers(opened.config, progress.note)
        recorder: Recorder | None = trace
        if opened.config.target == BUNDLED and not output.quiet:
            recorder = LimitNote(progress.note, question, trace)
        async with opened.stream(**asked, trace=recorder, **options) as chunks:
            async for chunk in chunks:
                if show_text:
                    progress.pause()
                    write(chunk.text)
    if show_text:
        write("\n")
    return chunks.answer


def _write_json(found: Answer) -> None:
    """Write the answer as one object, in ASCII where the output shows nothing else."""
    from pvlm.cli.streams import shows_unicode, write

    write(json.dumps(found.to_dict(), indent=2, ensure_ascii=not shows_unicode()) + "\n")
