"""What each command of the recipe does; the heavy modules are imported when they are needed."""

from __future__ import annotations

import argparse
import json
import random
import signal
import threading
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from .clips import FRAMES_PER_SECOND, write_clip
from .rendering import render
from .world import questions, sample_clip

_VISION_SHARE, _FRAMES_SHARE = 0.15, 0.2  # of the training time; the rest is for answers


def train(arguments: argparse.Namespace) -> None:
    from . import parallel

    parallel.run(_train_pair, arguments, arguments.processes)


def continue_(arguments: argparse.Namespace) -> None:
    from . import parallel

    parallel.run(_train_on, arguments, arguments.processes)


def grow(arguments: argparse.Namespace) -> None:
    from . import state
    from .growing import grown
    from .pair import load_checkpoint, save_checkpoint

    model, tokenizer = load_checkpoint(arguments.model)
    save_checkpoint(grown(model, arguments.layers, arguments.seed), tokenizer, arguments.out)
    state.copy_heads(arguments.model, arguments.out)  # the layers that they read give the same as before


def spread(arguments: argparse.Namespace) -> None:
    from . import growing, state
    from .pair import load_checkpoint, save_checkpoint

    model, tokenizer = load_checkpoint(arguments.model)
    growing.spread(model, arguments.depths, arguments.share)
    save_checkpoint(model, tokenizer, arguments.out)
    state.copy_heads(arguments.model, arguments.out)


def _train_on(arguments: argparse.Namespace) -> None:
    import torch

    from . import state
    from .continuation import train_on
    from .pair import load_checkpoint
    from .training import Settings

    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    start = arguments.state if state.exists(arguments.state) else arguments.model
    if start is None:
        raise SystemExit(f"{arguments.state} holds no state: name the checkpoint to start from with --model")
    torch.manual_seed(arguments.seed)
    model, tokenizer = load_checkpoint(start)
    pairs = (item.split(":") for item in arguments.scenes)
    settings = Settings(
        steps=arguments.steps,
        tokens_per_step=2000 * arguments.processes,
        questions_per_clip=16,
        questions_per_scene=2,
        muon_lr=arguments.rate,
        adam_lr=arguments.rate / 2,
        aux_weight=arguments.frames_weight,
        hold=arguments.hold,
        seed=arguments.seed,
        curriculum=((0.0, {int(scenes): float(weight) for scenes, weight in pairs}),),
    )
    train_on(model, tokenizer, settings, arguments.state, stop.is_set, start)


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
    settings = Settings(seconds=seconds * (1 - _VISION_SHARE - _FRAMES_SHARE), seed=arguments.seed + 1)

    def save() -> None:
        if parallel.rank() == 0:
            for name, model in models.items():
                save_checkpoint(model, tokenizer, arguments.out / name)

    train_vision(models, seconds * _VISION_SHARE, seed=arguments.seed + 5)
    train_frames(models, heads, tokenizer, settings, seconds * _FRAMES_SHARE)
    train_answers(models, heads, tokenizer, settings, save)
    save()


def evaluate(arguments: argparse.Namespace) -> None:
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


def pruning(arguments: argparse.Namespace) -> None:
    from .pruning import CHOICES, compare, load, report

    for name in arguments.choices or ():
        if name not in CHOICES:
            raise SystemExit(f"there is no choice {name!r}: use some of {', '.join(map(repr, CHOICES))}")
    target, draft = load(arguments.target), load(arguments.draft)
    report(compare(target, draft, arguments.clips, arguments.seed, arguments.choices))


def clip(arguments: argparse.Namespace) -> None:
    clip = sample_clip(random.Random(arguments.seed), arguments.scenes, arguments.frames)
    write_clip(arguments.out, render(clip, arguments.size), FRAMES_PER_SECOND)
    print(f"{arguments.out}: {len(clip.scenes)} scenes, {clip.frames} frames")
    for question in questions(clip):
        print(f"[{question.kind}] {question.text}\n    {question.answer}")
