"""``pvlm demo``: one question about a bundled clip, its answer, and measured speed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pvlm.cli.commands import ASKING, command, option
from pvlm.cli.interruption import run_async
from pvlm.cli.options import EngineSettings, Output, settings

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from pvlm.cli.bundled import BundledClip
    from pvlm.config import Method
    from pvlm.results import Answer
    from pvlm.trace import Trace

DRAFTED, OWN = "■▲"
DRAFTED_ASCII, OWN_ASCII = "#^"
A_ROW = 60
"""Tokens in a row of the picture."""
PRUNE = "novelty"
"""The pruner that loses least on drawn clips; the default, ``uv``, is made for filmed video."""
PAIR, SCALE, EMULATED_TOKENS = "ov-7b-72b", 0.1, 96
"""The emulated pair, the factor of its times, and the tokens of its answers."""


NAMES = {"parallel": "parallel", "sd": "draft and target in turns (sd)", "ar": "plain decoding"}
"""Of the methods, in the tables."""


@dataclass(frozen=True)
class Measured:
    """Answers of one way of decoding, in the order of measurement."""

    name: str
    answers: list[Answer]

    @property
    def decode_s(self) -> float:
        """Median time of decoding, in seconds."""
        from statistics import median

        return median(answer.stats.decode_s for answer in self.answers)


def register(group: typer.Typer) -> None:
    command(group, "demo", ASKING)(demo)


def demo(
    *,
    rounds: Annotated[int, option("--rounds", metavar="N", help="measure each method N times", show_default=True)] = 5,
    output: Output,
    engine: EngineSettings,
) -> int:
    """Answer a question about a bundled clip, and measure the speed.

    The answer is compared with the true one, and parallel decoding with taking turns and plain decoding. Then the same
    runtime decodes with the times of the paper's largest pair, emulated.
    """
    from pvlm.cli.bundled import bundled_clips, clips_folder
    from pvlm.cli.console import configure_logs

    configure_logs(output.verbose)
    clip = bundled_clips()[0]
    given = {"prune": PRUNE, **settings(engine)}
    with clips_folder() as folder:
        run_async(lambda: _demonstrate(clip, folder / clip.file, given, max(1, rounds), output))
    run_async(lambda: _demonstrate_emulated(output))
    return 0


async def _demonstrate(clip: BundledClip, path: Path, engine: dict[str, Any], rounds: int, output: Output) -> None:
    from rich.markup import escape

    from pvlm.cli.console import ResultConsole, figures_table
    from pvlm.cli.progress import ProgressDisplay
    from pvlm.cli.streams import shows_unicode, write
    from pvlm.engine import Engine
    from pvlm.trace import Trace

    console = ResultConsole()
    console.print(f"[bold]video[/]     {escape(str(path))}\n[bold]question[/]  {clip.question}", soft_wrap=True)
    with ProgressDisplay(quiet=output.quiet or output.verbose) as progress:
        engine = {"prefix_cache_bytes": 0, **engine}  # each answer is to be as the first one
        async with Engine.create(on_progress=progress.update, **engine) as opened:
            trace = Trace()
            async with opened.stream(path, clip.question, trace=trace) as chunks:
                label = "[bold]answer[/]    "
                async for chunk in chunks:
                    progress.pause()
                    console.print(label, end="")
                    write(chunk.text)
                    label = ""
            write("\n\n")
            answer = chunks.answer
            true = answer.text == clip.answer
            console.print("This is the true answer.\n" if true else f"The true answer is: {clip.answer}\n")
            progress.resume()
            ours = Measured(opened.config.resolved_method(), [])
            turns = Measured(NAMES["sd"], [])
            plain = Measured("plain decoding, the same target on the same cores", [])
            for turn in range(rounds):
                progress.update("measure", turn / (2 * rounds))
                ours.answers.append(await opened.answer(path, clip.question))
                if ours.name == "parallel":
                    turns.answers.append(await opened.answer(path, clip.question, method="sd"))
                plain.answers.append(await opened.answer(path, clip.question, method="ar"))
        async with Engine.create(on_progress=progress.update, **{**engine, "method": "ar"}) as opened:
            alone = Measured("plain decoding, the target alone on all cores", [])
            for turn in range(rounds):
                progress.update("measure", (rounds + turn) / (2 * rounds))
                alone.answers.append(await opened.answer(path, clip.question))
    if "d" in answer.stats.origins:
        console.print("Who wrote it: [green]drafted and accepted[/], [bold red]the target's own[/]")
        console.print(_who_wrote(answer, unicode=shows_unicode()))
        console.print()
        _print_lanes(console, trace)
    if not output.quiet:
        console.print(figures_table(answer.stats))
        console.print()
    _print_speeds(console, [way for way in (ours, turns, plain, alone) if way.answers], plain)


async def _demonstrate_emulated(output: Output) -> None:
    """The same runtime with models that only take the paper's times."""
    from pvlm.bench.emulated import FRAMES, QUESTION, pair_settings, warm_up
    from pvlm.bench.pairs import PAIRS, PRUNE_RATIO
    from pvlm.cli.console import ResultConsole
    from pvlm.cli.progress import ProgressDisplay
    from pvlm.engine import Engine
    from pvlm.trace import Trace

    pair = PAIRS[PAIR]
    options: dict[str, Any] = {"max_tokens": EMULATED_TOKENS, "prune_ratio": PRUNE_RATIO}
    found = {}
    trace = Trace()
    with ProgressDisplay(quiet=output.quiet or output.verbose) as progress:
        settings = pair_settings(pair, pair.accepted_length, SCALE, "ipc")
        async with Engine.create(on_progress=progress.update, **settings) as opened:
            await warm_up(opened)
            methods: tuple[Method, ...] = ("parallel", "sd", "ar")
            for step, method in enumerate(methods):
                progress.update("measure", step / 3)
                recorder = trace if method == "parallel" else None
                answer = await opened.answer(FRAMES, QUESTION, method=method, trace=recorder, **options)
                found[method] = Measured(NAMES[method], [answer])
    console = ResultConsole()
    console.print(
        f"\n[bold]The same runtime with the times of {pair.models}[/], emulated at {SCALE:g} of their length: no model "
        "runs, and each pass waits for as long as the paper measured.\n"
    )
    _print_lanes(console, trace)
    _print_speeds(console, list(found.values()), found["ar"])


def _print_lanes(console: Console, trace: Trace) -> None:
    from pvlm.cli.lanes import lanes
    from pvlm.cli.streams import shows_unicode
    from pvlm.trace.timeline import timeline

    if trace.recorded:
        console.print(lanes(timeline(trace.recording()), unicode=shows_unicode()))
        console.print()


def _print_speeds(console: Console, measured: Sequence[Measured], plain: Measured) -> None:
    """The table, and the first way compared with plain decoding in a sentence."""
    ours = measured[0]
    ratio = plain.decode_s / ours.decode_s
    same = all(answer.tokens == plain.answers[0].tokens for answer in ours.answers)
    console.print(_speeds(measured))
    console.print(
        f"\nHere {ours.name} decoding was {ratio:.2f} times as fast as plain decoding on the same cores, with "
        + ("the same tokens." if same else "other tokens!"),
        soft_wrap=True,
    )


def _who_wrote(answer: Answer, *, unicode: bool) -> Text:
    """One cell for each token: accepted tokens of the draft, and the target's own."""
    from rich.text import Text

    drafted, own = (DRAFTED, OWN) if unicode else (DRAFTED_ASCII, OWN_ASCII)
    text = Text()
    for index, origin in enumerate(answer.stats.origins):
        if index and index % A_ROW == 0:
            text.append("\n")
        text.append(drafted if origin == "d" else own, "green" if origin == "d" else "bold red")
    return text


def _speeds(measured: Sequence[Measured]) -> Table:
    """Medians side by side; ratios compare with the first row."""
    from statistics import median

    from rich.table import Table

    from pvlm.results import median_or_none

    table = Table(
        title=f"Measured in this run (medians of {len(measured[0].answers)})",
        title_justify="left",
        box=None,
        pad_edge=False,
    )
    for column in ("", "prefill", "decode", "tokens a second", "passes", "first row is faster by"):
        table.add_column(column, justify="left" if not column else "right")
    ours = measured[0]
    for way in measured:
        stats = [answer.stats for answer in way.answers]
        speed = median_or_none([s.tokens_per_second for s in stats if s.tokens_per_second])
        same = all(answer.tokens == ours.answers[0].tokens for answer in way.answers)
        table.add_row(
            way.name,
            f"{median(s.prefill_s for s in stats):.3f} s",
            f"{way.decode_s:.3f} s",
            f"{speed:.0f}" if speed else "–",
            f"{median(s.target_passes for s in stats):.0f}",
            ("" if way is ours else f"{way.decode_s / ours.decode_s:.2f}× in decoding")
            + ("" if same else ", other tokens!"),
        )
    return table
