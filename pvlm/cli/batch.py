"""``pvlm batch QUESTIONS.jsonl --out ANSWERS.jsonl``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from pvlm.cli.commands import ASKING, command, option
from pvlm.cli.interruption import run_async
from pvlm.cli.options import AnswerSettings, EngineSettings, Output, settings

if TYPE_CHECKING:
    from pvlm.answer.file import AnswersFile

NONE_FAILED, MOST_FAILED = 10, 90
"""The exit status is 10 + the number of failed lines, of which it counts 90; 0 without any."""


def register(group: typer.Typer) -> None:
    command(group, "batch", ASKING)(batch)


def batch(
    questions: Annotated[str, typer.Argument(metavar="QUESTIONS.jsonl", help="a JSON object a line: video, question")],
    *,
    out: Annotated[str, option("--out", metavar="ANSWERS.jsonl", help="gets an object for each line")],
    unordered: Annotated[bool, option("--unordered", help="write each answer when it is complete")] = False,
    concurrency: Annotated[
        int | None, option("--concurrency", metavar="N", help="answers at a time (default: 4)", min=1)
    ] = None,
    output: Output,
    engine: EngineSettings,
    options: AnswerSettings,
) -> int:
    """Answer a file of questions. A run that was stopped continues where it stopped.

    Each line of QUESTIONS.jsonl is an object with "video" and "question", and if wanted "options" (such as
    {"max_tokens": 64}) and "id". Options of the command count where a line has none. A line that fails has its error
    in the place of an answer, and the others continue.

    Exit status: 0 if every line has an answer; 10 + the number of lines that failed, at most 100; 1 and 2 if the
    command itself fails.
    """
    from pvlm.answer.file import AnswersFile, read_questions
    from pvlm.cli.console import configure_logs, note

    configure_logs(output.verbose)
    asked = read_questions(questions)
    with AnswersFile(out, asked, questions) as file:
        before = len(file.written)
        try:
            if before < len(asked):
                given = settings(engine, max_sessions=concurrency), settings(options)
                run_async(lambda: _answer_all(file, *given, output, ordered=not unordered))
        finally:
            if not output.quiet:
                note(file.summary(before))
        if not unordered:
            file.sort()
    return NONE_FAILED + min(file.failed, MOST_FAILED) if file.failed else 0


async def _answer_all(
    file: AnswersFile, engine: dict[str, Any], options: dict[str, Any], output: Output, *, ordered: bool
) -> None:
    from pvlm.cli.console import note_remote_workers
    from pvlm.cli.progress import ProgressDisplay
    from pvlm.engine import Engine

    left = file.left
    with ProgressDisplay(quiet=output.quiet or output.verbose) as progress:

        def loading(step: str, fraction: float) -> None:
            if step.startswith("load"):  # the steps of single answers would be many at once
                progress.update(step, fraction)

        opened = Engine.create(on_progress=loading, **engine)
        note_remote_workers(opened.config, progress.note)
        async with opened:
            done = 0
            progress.update("answer", 0.0)
            async for outcome in opened.map((line.text for line in left), ordered=ordered, **options):
                file.add(left[outcome.index], outcome)
                done += 1
                progress.update("answer", done / len(left))
