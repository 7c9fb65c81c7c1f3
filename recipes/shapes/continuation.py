"""Stage D: trains a checkpoint on, in a run that may be stopped and resumed at any time.

The schedule goes by steps, and each step's clips follow from the seed and its number.
A resumed run therefore does exactly what an uninterrupted one does.
"""

from __future__ import annotations

import logging
import random
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import nn
from transformers import LlavaOnevisionForConditionalGeneration, PreTrainedTokenizerFast

from . import parallel, state
from .frame_heads import NameHead, frame_labels
from .optim import Clock, Trainer
from .packing import Packer, normalized_clips
from .state import State
from .training import (
    Settings,
    answer_loss,
    draw_batch,
    exact_answers,
    log_check,
    new_heads,
    read_frames,
    run_model,
    video_features,
)
from .world import sample_clip

log = logging.getLogger(__name__)

_HEADS_RATE, _HEADS_FRAMES = 1e-2, 64


def _random(settings: Settings, purpose: str, step: int) -> random.Random:
    return random.Random(f"{settings.seed} {purpose} {step} {parallel.rank()}")


def fit_heads(
    model: LlavaOnevisionForConditionalGeneration,
    heads: nn.ModuleList,
    packer: Packer,
    settings: Settings,
    steps: int,
) -> list[float]:
    """Fit fresh frame heads to a model that stays as it is; returns the shares read rightly by step."""
    trainer, clock = Trainer([heads], 0.0, _HEADS_RATE), Clock(0.0, steps)
    shares: list[float] = []
    while clock.running():
        rng = _random(settings, "heads", len(shares))
        scenes = rng.choice([scenes for scenes in (1, 2, 4, 8) if 8 * scenes <= _HEADS_FRAMES])
        clips = [sample_clip(rng, scenes)]
        while len(clips) * clips[0].frames < _HEADS_FRAMES - clips[0].frames:
            clips.append(sample_clip(rng, scenes, clips[0].frames))
        with torch.no_grad():
            tokens = video_features(model, normalized_clips(clips, rng), frozen=True)
            states = read_frames(model, tokens, packer.before, len(clips))
        labels = frame_labels(clips)
        read = [head(x, labels) for head, x in zip(heads, states, strict=True)]
        torch.stack([loss for loss, _ in read]).mean().backward()
        trainer.step(clock.rate_factor(len(shares), warmup=5))
        told = read[-1][1]
        shares.append(sum(told.values()) / len(told))
        if len(shares) % 20 == 0 and parallel.rank() == 0:
            log.info("heads %d scenes %d %s", len(shares), scenes, {k: round(v, 2) for k, v in told.items()})
    return shares


def train_on(
    model: LlavaOnevisionForConditionalGeneration,
    tokenizer: PreTrainedTokenizerFast,
    settings: Settings,
    folder: Path,
    stopped: Callable[[], bool] = lambda: False,
    start: Path | None = None,
    heads_steps: int = 60,
    check_scenes: tuple[int, ...] = (1, 2, 4, 8),
) -> State:
    """Train a model on its answers up to ``settings.steps`` steps, or until ``stopped`` says so.

    The state lies in ``folder``: it is resumed from there where one exists, and saved there. A new run
    takes the heads saved in ``start``, or else fits fresh ones.
    """
    if settings.steps is None:
        raise ValueError("a run that can be resumed goes by steps: set settings.steps")
    packer, heads = Packer(tokenizer), new_heads(model)
    name_head = NameHead(model.config.text_config.hidden_size)
    all_heads = nn.ModuleList([*heads, name_head])
    now = State(model, all_heads, Trainer([model, all_heads], settings.muon_lr, settings.adam_lr))
    if state.exists(folder):
        now.load(folder)
        log.info("resumed at step %d", now.step)
    elif start is None or not state.load_heads(all_heads, start):
        fit_heads(model, heads, packer, settings, heads_steps)
    clock = Clock(0.0, settings.steps, done=now.step)
    began, saved = time.process_time() - now.active_seconds, time.monotonic()
    recent = _Recent()
    while clock.running() and not parallel.first_says(stopped()):
        batch = draw_batch(packer, _random(settings, "answers", now.step), settings, clock.progress)
        output = run_model(model, batch)
        loss = answer_loss(output.scores, batch)
        labels = frame_labels(batch.clips)
        read = [head(x, labels) for head, x in zip(heads, output.middle, strict=True)]
        named, known = name_head(output.names, batch.name_labels)
        recent.add(loss.item(), exact_answers(output.scores, batch), {**read[-1][1], **known})
        aux = torch.stack([part for part, _ in read]).mean() + named
        (loss + settings.aux_weight * aux).backward()
        now.trainer.step(clock.rate_factor(now.step, hold=settings.hold))
        now.step += 1
        now.follow(settings.average_over)
        now.active_seconds = time.process_time() - began
        if parallel.rank() != 0:
            continue
        if now.step % settings.report_every == 0:
            log.info("step %d, %.0f s active: %s", now.step, now.active_seconds, recent.report())
            recent = _Recent()
        if time.monotonic() - saved > settings.save_every_seconds:
            now.save(folder, tokenizer)
            saved = time.monotonic()
        if check_scenes and now.step % settings.check_every == 0:
            log_check("average", now.averaged(), packer, check_scenes)
    if parallel.rank() == 0:
        now.save(folder, tokenizer)
        log.info("saved at step %d", now.step)
    return now


class _Recent:
    """What the last training batches showed, before each was learned from."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.found: defaultdict[str, list[float]] = defaultdict(list)

    def add(self, loss: float, answers: Iterable[tuple[int, str, bool]], heads: dict[str, float]) -> None:
        """Count one batch."""
        self.losses.append(loss)
        for scenes, kind, right in answers:
            self.found[f"{scenes:2d} scenes"].append(right)
            self.found[kind].append(right)
        for part in ("scene", "number", "start", "action"):
            if part in heads:
                self.found[f"[{part}]"].append(heads[part])

    def report(self) -> str:
        """The mean loss, and the share of exact answers by scenes and by kind, and of heads' labels."""
        shares = ", ".join(f"{name} {100 * sum(s) / len(s):.0f}%" for name, s in sorted(self.found.items()))
        return f"loss {sum(self.losses) / len(self.losses):.4f}, {shares}"
