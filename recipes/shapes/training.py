"""Stages B and C: teach the decoders what happens frame by frame, then to answer questions."""

from __future__ import annotations

import logging
import random
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn
from transformers import LlavaOnevisionForConditionalGeneration, PreTrainedTokenizerFast

from . import attention, parallel
from .frame_heads import FrameHead, frame_labels
from .optim import Clock, Trainer
from .packing import Batch, Packer, choose_questions, draw_questions, normalized_clips
from .pair import TOKENS_PER_FRAME
from .vision import CellReader, cell_loss, label_cells
from .world import sample_clip

log = logging.getLogger(__name__)

# A four-dimensional mask is passed on as it is; the packed attention looks at the layout only.
_UNUSED_MASK = torch.ones(1, 1, 1, 1, dtype=torch.bool)

# (from this share of the time on, weight of each number of scenes)
Curriculum = tuple[tuple[float, dict[int, float]], ...]
CURRICULUM: Curriculum = (
    (0.00, {1: 0.5, 2: 0.5}),
    (0.45, {1: 0.3, 2: 0.4, 3: 0.1, 4: 0.1, 6: 0.05, 8: 0.05}),
    (0.65, {1: 0.25, 2: 0.35, 3: 0.1, 4: 0.1, 6: 0.05, 8: 0.1, 12: 0.03, 16: 0.02}),
)


@dataclass
class Settings:
    """The settings of stages B to D."""

    seconds: float = 2900.0
    steps: int | None = None
    tokens_per_step: int = 2800
    questions_per_clip: int = 8
    questions_per_scene: int = 0
    frames_per_step: int = 160
    muon_lr: float = 3e-3
    adam_lr: float = 1.5e-3
    aux_weight: float = 1.0
    draft_every: int = 2
    distill_from: float = 0.5
    seed: int = 1
    report_every: int = 25
    save_every_seconds: float = 300.0
    curriculum: Curriculum = CURRICULUM
    hold: float = 0.8
    average_over: int = 50
    check_every: int = 200


@dataclass
class Output:
    """What a model makes of a batch: scores at answer tokens, and hidden states at video tokens and at names."""

    scores: torch.Tensor
    middle: list[torch.Tensor]
    names: torch.Tensor


def middle_layers(layers: int) -> list[int]:
    """The layers whose output the frame heads read; those after them are for the questions."""
    return sorted({max(0, layers // 2 - 1), max(0, 2 * layers // 3 - 1)})


def name_layer(layers: int) -> int:
    """The layer whose output the name head reads; those after it compare and answer."""
    return max(0, 5 * layers // 6 - 1)


def new_heads(model: LlavaOnevisionForConditionalGeneration) -> nn.ModuleList:
    """A frame head for each middle layer of a model."""
    text = model.config.text_config
    return nn.ModuleList(FrameHead(text.hidden_size) for _ in middle_layers(text.num_hidden_layers))


def read_frames(
    model: LlavaOnevisionForConditionalGeneration,
    tokens: torch.Tensor,
    before: list[int],
    clips: int,
) -> list[torch.Tensor]:
    """Hidden states at the video tokens of videos without questions."""
    inner, language = model.model, model.model.language_model
    tokens = tokens.reshape(clips, -1, tokens.shape[-1])
    lead = language.embed_tokens(torch.tensor(before)).expand(clips, -1, -1)
    hidden = torch.cat([lead, tokens], dim=1)
    positions = torch.arange(hidden.shape[1])[None]
    rotary = inner.language_model.rotary_emb(hidden, positions)
    wanted = middle_layers(len(language.layers))
    states = []
    for index, layer in enumerate(language.layers[: wanted[-1] + 1]):
        hidden = layer(hidden, attention_mask=None, position_embeddings=rotary)
        if index in wanted:
            states.append(hidden[:, len(before) :].flatten(0, 1))
    return states


def video_features(model: LlavaOnevisionForConditionalGeneration, pixels: torch.Tensor, frozen: bool) -> torch.Tensor:
    """(frames, 16, width) video tokens."""
    inner = model.model
    with torch.set_grad_enabled(torch.is_grad_enabled() and not frozen):
        seen = inner.vision_tower(pixels, output_hidden_states=True).hidden_states[-1]
    return inner.apply_pooling(inner.multi_modal_projector(seen))


@contextmanager
def _recorded(layers: nn.ModuleList) -> Iterator[list[torch.Tensor]]:
    outputs: list[torch.Tensor] = []
    handles = [layer.register_forward_hook(lambda _, __, output: outputs.append(output)) for layer in layers]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


def run_model(model: LlavaOnevisionForConditionalGeneration, batch: Batch, frozen_vision: bool = True) -> Output:
    """Run a model on a packed batch."""
    inner = model.model
    tokens = video_features(model, batch.pixels, frozen=True).flatten(0, 1)
    language = inner.language_model
    embeds = language.embed_tokens(batch.ids)
    embeds = embeds.index_put(tuple(batch.video_at.T), tokens)
    newline = inner.image_newline.expand(len(batch.newline_at), -1)
    embeds = embeds.index_put(tuple(batch.newline_at.T), newline)
    usual = language.config._attn_implementation
    language.config._attn_implementation = attention.NAME
    with _recorded(language.layers) as outputs:
        hidden = language(
            inputs_embeds=embeds,
            attention_mask=_UNUSED_MASK,
            position_ids=batch.positions,
            use_cache=False,
            layout=batch.layout,
        ).last_hidden_state
    language.config._attn_implementation = usual
    at_video, at_names = (tuple(places.T) for places in (batch.video_at, batch.names))
    layers = len(language.layers)
    scores = model.lm_head(hidden[tuple(batch.answers.T)])
    middle = [outputs[index][at_video] for index in middle_layers(layers)]
    return Output(scores, middle, outputs[name_layer(layers)][at_names])


def answer_loss(scores: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Cross-entropy at answer tokens; words that carry content weigh more than fillers."""
    losses = F.cross_entropy(scores, batch.labels, reduction="none")
    return (losses * batch.weights).sum() / batch.weights.sum()


def distillation_loss(scores: torch.Tensor, teacher: torch.Tensor, batch: Batch) -> torch.Tensor:
    """How far the draft's distribution is from the target's, weighed like the answers."""
    losses = F.kl_div(scores.log_softmax(-1), teacher.log_softmax(-1), reduction="none", log_target=True).sum(-1)
    return (losses * batch.weights).sum() / batch.weights.sum()


def exact_answers(scores: torch.Tensor, batch: Batch) -> Iterator[tuple[int, str, bool]]:
    """For each question its clip's scenes, its kind and whether greedy decoding answers exactly.

    Greedy decoding writes the true answer if and only if each true token has the highest score
    after the true tokens before it, so that no text needs to be generated.
    """
    right = scores.argmax(-1) == batch.labels
    for asked in batch.asked:
        yield asked.scenes, asked.question.kind, bool(right[asked.positions].all())


def _scene_mix(curriculum: Curriculum, progress: float) -> dict[int, float]:
    return [mix for start, mix in curriculum if start <= progress][-1]


def draw_batch(packer: Packer, rng: random.Random, settings: Settings, progress: float) -> Batch:
    """A batch of clips of one number of scenes, of about ``tokens_per_step`` tokens."""
    mix = _scene_mix(settings.curriculum, progress)
    scenes = rng.choices(list(mix), list(mix.values()))[0]
    count = settings.questions_per_clip + settings.questions_per_scene * scenes
    tokens = scenes * (8 * TOKENS_PER_FRAME + 30) + 25 * count
    clips = [sample_clip(rng, scenes)]
    for _ in range(settings.tokens_per_step // parallel.processes() // tokens - 1):
        clips.append(sample_clip(rng, scenes, clips[0].frames))
    asked = [draw_questions(clip, rng, count) for clip in clips]
    return packer.pack(clips, asked, rng)


@torch.no_grad()
def quick_check(
    model: LlavaOnevisionForConditionalGeneration,
    packer: Packer,
    scenes: int,
    clips: int = 16,
    seed: int = 10**6,
) -> tuple[float, dict[str, float]]:
    """The share of exact answers on unseen rendered clips, in all and by kind."""
    rng = random.Random(seed + scenes)
    found: dict[str, list[bool]] = defaultdict(list)
    for _ in range(clips):
        clip = sample_clip(rng, scenes)
        batch = packer.pack([clip], [choose_questions(clip, rng, 16)], None)
        for _, kind, right in exact_answers(run_model(model, batch).scores, batch):
            found[kind].append(right)
    every = [right for group in found.values() for right in group]
    by_kind = {kind: sum(group) / len(group) for kind, group in sorted(found.items())}
    return sum(every) / len(every), by_kind


def train_frames(
    models: dict[str, LlavaOnevisionForConditionalGeneration],
    heads: dict[str, nn.ModuleList],
    tokenizer: PreTrainedTokenizerFast,
    settings: Settings,
    seconds: float,
) -> dict[str, list[float]]:
    """Stage B: the lower layers on videos alone, so that they know at each frame what happened.

    Without questions, and without the upper layers, many more clips are seen in the same time.
    """
    packer, rng = Packer(tokenizer), random.Random(settings.seed + 1000 + parallel.rank())
    readers = {n: CellReader(m.config.text_config.hidden_size) for n, m in models.items()}
    trainers = {
        name: Trainer([model, heads[name], readers[name]], settings.muon_lr, settings.adam_lr)
        for name, model in models.items()
    }
    losses: dict[str, list[float]] = {name: [] for name in models}
    clock, step = Clock(seconds, settings.steps), 0
    while clock.running():
        scenes = rng.choices((1, 2, 4, 8), (4, 4, 2, 0.5 if clock.progress > 0.5 else 0))[0]
        clips = [sample_clip(rng, scenes)]
        for _ in range(settings.frames_per_step // parallel.processes() // clips[0].frames - 1):
            clips.append(sample_clip(rng, scenes, clips[0].frames))
        pixels, labels = normalized_clips(clips, rng), frame_labels(clips)
        cells = label_cells([state for clip in clips for state in clip.states])
        shares = {}
        for name, model in models.items():
            tokens = video_features(model, pixels, frozen=False)
            seen, cell_shares = cell_loss(readers[name], tokens, cells)
            states = read_frames(model, tokens, packer.before, len(clips))
            parts = [head(x, labels) for head, x in zip(heads[name], states, strict=True)]
            loss = torch.stack([part for part, _ in parts]).mean() + 0.2 * seen
            loss.backward()
            trainers[name].step(clock.rate_factor(step, hold=0.6))
            losses[name].append(loss.item())
            told = {**cell_shares, **parts[-1][1]}
            shares[name] = " ".join(f"{k}:{100 * v:.0f}" for k, v in told.items())
        if step % settings.report_every == 0 and parallel.rank() == 0:
            last = {n: round(sum(v[-25:]) / len(v[-25:]), 3) for n, v in losses.items()}
            log.info("frames %d %.0fs scenes %d %s %s", step, clock.elapsed, scenes, last, shares)
        step += 1
    return losses


def train_answers(
    models: dict[str, LlavaOnevisionForConditionalGeneration],
    heads: dict[str, nn.ModuleList],
    tokenizer: PreTrainedTokenizerFast,
    settings: Settings,
    save: Callable[[], None] | None = None,
    check_scenes: tuple[int, ...] = (1, 2, 4, 8),
) -> dict[str, list[float]]:
    """Stage C: packed questions, by a curriculum of clip lengths; returns losses by step.

    The draft also learns the target's distribution, since it is to guess what the target says.
    """
    packer, rng = Packer(tokenizer), random.Random(settings.seed + 100 * parallel.rank())
    trainers = {
        name: Trainer([model, heads[name]], settings.muon_lr, settings.adam_lr) for name, model in models.items()
    }
    losses: dict[str, list[float]] = {name: [] for name in models}
    clock, step, saved = Clock(settings.seconds, settings.steps), 0, 0.0
    while clock.running():
        progress = clock.progress
        batch = draw_batch(packer, rng, settings, progress)
        labels = frame_labels(batch.clips)
        aux_weight = settings.aux_weight * max(0.1, 1 - progress / 0.7)
        teacher, report = None, {}
        for name, model in models.items():
            if name == "draft" and step % settings.draft_every:
                continue
            output = run_model(model, batch)
            loss = answer_loss(output.scores, batch)
            losses[name].append(loss.item())
            if name == "draft" and teacher is not None and progress > settings.distill_from:
                loss = 0.2 * loss + distillation_loss(output.scores, teacher, batch)
            teacher = output.scores.detach()
            frames = [h(x, labels) for h, x in zip(heads[name], output.middle, strict=True)]
            report[name] = round(sum(frames[-1][1].values()) / len(frames[-1][1]), 3)
            aux = torch.stack([part for part, _ in frames]).mean()
            (loss + aux_weight * aux).backward()
            trainers[name].step(clock.rate_factor(step, hold=0.25))
        if step % settings.report_every == 0 and parallel.rank() == 0:
            last = {n: round(sum(v[-25:]) / len(v[-25:]), 4) for n, v in losses.items()}
            size = tuple(batch.ids.shape)
            log.info("step %d %.0fs %s frames %s %s", step, clock.elapsed, last, report, size)
        step += 1
        if parallel.rank() == 0 and save and clock.elapsed - saved > settings.save_every_seconds:
            saved = clock.elapsed
            save()
            for name, model in models.items():
                log_check(name, model, packer, check_scenes)
    return losses


def log_check(
    name: str,
    model: LlavaOnevisionForConditionalGeneration,
    packer: Packer,
    check_scenes: tuple[int, ...],
) -> None:
    """Log exact answers on a few unseen clips of each number of scenes."""
    for scenes in check_scenes:
        every, by_kind = quick_check(model, packer, scenes, clips=max(3, 12 // scenes))
        told = " ".join(f"{kind}:{share:.2f}" for kind, share in by_kind.items())
        log.info("check %s scenes=%d exact=%.3f %s", name, scenes, every, told)
