"""Command line of the recipe: train the pair, measure it, or write a clip."""

from __future__ import annotations

import argparse
import json
import logging
import random
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from .clips import FRAMES_PER_SECOND, write_clip
from .rendering import render
from .world import MAX_SCENES, questions, sample_clip

VISION_SHARE, FRAMES_SHARE = 0.15, 0.2  # of the training time; the rest is for answers


def main() -> None:
    """Run one of the commands."""
    parser = argparse.ArgumentParser(prog="shapes", description=__doc__)
    commands = parser.add_subparsers(required=True)

    train = commands.add_parser("train", help="train target and draft from nothing")
    train.add_argument("--seconds", type=float, default=4200.0, help="wall-clock time for both stages")
    train.add_argument("--out", type=Path, required=True, help="folder for target/ and draft/")
    train.add_argument("--seed", type=int, default=0)
    train.add_argument("--processes", type=int, default=1, help="train in several processes of one thread each")
    train.set_defaults(run=_train)

    evaluate = commands.add_parser("evaluate", help="measure a pair on unseen mp4 clips")
    evaluate.add_argument("--target", default="bundled", help="a checkpoint; the default is the bundled one")
    evaluate.add_argument("--draft", type=Path, help="also report how often this draft agrees with the target")
    evaluate.add_argument("--clips", type=int, default=200)
    evaluate.add_argument("--scenes", type=int, nargs="+", default=[1, 2, 4, 8])
    evaluate.add_argument("--questions", type=int, default=4, help="questions for each clip")
    evaluate.add_argument("--seed", type=int, default=10**9)
    evaluate.add_argument("--json", type=Path, help="also write the figures to this file")
    evaluate.set_defaults(run=_evaluate)

    pruning = commands.add_parser("pruning", help="which video tokens help the draft of the bundled pair most")
    pruning.add_argument("--clips", type=int, default=40)
    pruning.add_argument("--seed", type=int, default=5000, help="of the first clip")
    pruning.add_argument("--choices", nargs="+", metavar="NAME", help="some of the table's rows; default: all")
    pruning.set_defaults(run=_pruning)

    clip = commands.add_parser("clip", help="write one clip and print its questions and answers")
    clip.add_argument("--seed", type=int, default=0)
    clip.add_argument("--scenes", type=int, default=2, choices=range(1, MAX_SCENES + 1))
    clip.add_argument("--frames", type=int, help="6 to 10 for each scene")
    clip.add_argument("--size", type=int, default=224)
    clip.add_argument("--out", type=Path, required=True)
    clip.set_defaults(run=_clip)

    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    arguments.run(arguments)


def _train(arguments: argparse.Namespace) -> None:
    from torch import multiprocessing

    if arguments.processes == 1:
        _train_pair(arguments)
        return
    with TemporaryDirectory() as folder:
        place = Path(folder) / "meeting"
        multiprocessing.spawn(_train_one_of, (arguments, place), arguments.processes)


def _train_one_of(rank: int, arguments: argparse.Namespace, place: Path) -> None:
    from . import parallel

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    parallel.join(rank, arguments.processes, place)
    _train_pair(arguments)


def _train_pair(arguments: argparse.Namespace) -> None:
    import torch

    from . import parallel
    from .pair import DRAFT, TARGET, new_model, save_checkpoint
    from .tokenizer import build_tokenizer
    from .training import Settings, new_heads, train_answers, train_frames
    from .vision import train_vision

    torch.manual_seed(arguments.seed)
    tokenizer = build_tokenizer()
    models = {"target": new_model(TARGET, tokenizer), "draft": new_model(DRAFT, tokenizer)}
    heads = {name: new_heads(model) for name, model in models.items()}
    seconds = arguments.seconds
    settings = Settings(seconds=seconds * (1 - VISION_SHARE - FRAMES_SHARE), seed=arguments.seed + 1)

    def save() -> None:
        if parallel.rank() == 0:
            for name, model in models.items():
                save_checkpoint(model, tokenizer, arguments.out / name)

    train_vision(models, seconds * VISION_SHARE, seed=arguments.seed + 5)
    train_frames(models, heads, tokenizer, settings, seconds * FRAMES_SHARE)
    train_answers(models, heads, tokenizer, settings, save)
    save()


def _evaluate(arguments: argparse.Namespace) -> None:
    from .engine import EngineAnswerer
    from .evaluate import TeacherForced, agreement, measure, report, write_samples

    per_length = -(-arguments.clips // len(arguments.scenes))
    with TemporaryDirectory() as folder:
        samples = write_samples(Path(folder), arguments.scenes, per_length, arguments.questions, arguments.seed)
        with EngineAnswerer(target=arguments.target, method="ar", threads=1) as answer:
            results = measure(answer, samples)
        figures: dict[str, Any] = {"target": report(results)}
        if arguments.draft:
            figures["agreement"] = agreement(TeacherForced(arguments.draft), results)
            shares = ", ".join(f"{k} {100 * v:.1f}%" for k, v in figures["agreement"].items())
            print(f"\nthe draft's first choice is the target's token: {shares}")
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")


def _pruning(arguments: argparse.Namespace) -> None:
    from .pruning import CHOICES, compare, report

    for name in arguments.choices or ():
        if name not in CHOICES:
            raise SystemExit(f"there is no choice {name!r}: use some of {', '.join(map(repr, CHOICES))}")
    report(compare(arguments.clips, arguments.seed, arguments.choices))


def _clip(arguments: argparse.Namespace) -> None:
    clip = sample_clip(random.Random(arguments.seed), arguments.scenes, arguments.frames)
    write_clip(arguments.out, render(clip, arguments.size), FRAMES_PER_SECOND)
    print(f"{arguments.out}: {len(clip.scenes)} scenes, {clip.frames} frames")
    for question in questions(clip):
        print(f"[{question.kind}] {question.text}\n    {question.answer}")


if __name__ == "__main__":
    main()
