"""``pvlm demo``: one question about a bundled clip, its answer, and measured speed."""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path
from statistics import median

import anyio
import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from pvlm.cli.console import ProgressDisplay, figures_table, quiet_logs
from pvlm.cli.options import add_engine_options, engine_settings
from pvlm.engine import Engine
from pvlm.results import Answer, median_or_none


class BundledClip(msgspec.Struct, frozen=True):
    """A bundled clip: its file beside ``clips.json``, a question, and the true answer."""

    file: str
    question: str
    answer: str


@dataclass(frozen=True)
class Measured:
    """Answers of one way of decoding, in the order of measurement."""

    name: str
    answers: list[Answer]

    @property
    def decode_s(self) -> float:
        """Median time of decoding, in seconds."""
        return median(answer.stats.decode_s for answer in self.answers)


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("demo", help="answer a question about a bundled clip, and measure the speed")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="measure each method N times (default: 5)")
    add_engine_options(parser)
    parser.set_defaults(run=run)


def bundled_clips() -> list[BundledClip]:
    """The bundled clips; the demo uses the first."""
    return msgspec.json.decode(
        (files("pvlm") / "bundled" / "clips" / "clips.json").read_bytes(), type=list[BundledClip]
    )


def run(options: argparse.Namespace) -> int:
    quiet_logs(False)
    clip = bundled_clips()[0]
    with as_file(files("pvlm") / "bundled" / "clips" / clip.file) as path:
        anyio.run(_demonstrate, options, clip, path)
    return 0


async def _demonstrate(options: argparse.Namespace, clip: BundledClip, path: Path) -> None:
    console = Console(highlight=False)
    settings = engine_settings(options)
    console.print(f"[bold]video[/]     {path}\n[bold]question[/]  {clip.question}\n[bold]answer[/]    ", end="")
    with ProgressDisplay() as progress:
        async with Engine.create(on_progress=progress.update, **settings) as engine:
            async with engine.stream(path, clip.question) as chunks:
                async for chunk in chunks:
                    sys.stdout.write(chunk.text)
                    sys.stdout.flush()
            sys.stdout.write("\n\n")
            ours = Measured(engine.config.resolved_method(), [])
            plain = Measured("plain decoding, the same target on the same cores", [])
            for _ in range(max(1, options.rounds)):
                ours.answers.append(await engine.answer(path, clip.question))
                plain.answers.append(await engine.answer(path, clip.question, method="ar"))
        async with Engine.create(**{**settings, "method": "ar"}) as engine:
            alone = Measured("plain decoding, the target alone on all cores", [])
            for _ in range(max(1, options.rounds)):
                alone.answers.append(await engine.answer(path, clip.question))
    answer = chunks.answer
    true = answer.text == clip.answer
    console.print(("This is the true answer." if true else f"The true answer is: {clip.answer}") + "\n")
    if "d" in answer.stats.origins:
        console.print(
            Text("Who wrote it: ") + Text("drafted and accepted", "green") + ", " + Text("the target's own", "bold red")
        )
        console.print(_who_wrote(answer))
        console.print()
    console.print(figures_table(answer.stats))
    console.print()
    console.print(_speeds([ours, plain, alone]))


def _who_wrote(answer: Answer) -> Text:
    """One cell for each token, 60 in a row: accepted tokens of the draft, and the target's own."""
    text = Text()
    for index, origin in enumerate(answer.stats.origins):
        text.append("■" if origin == "d" else "▲", "green" if origin == "d" else "bold red")
        if index % 60 == 59:
            text.append("\n")
    return text


def _speeds(measured: list[Measured]) -> Table:
    """Medians side by side; ratios compare with the first row."""
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
