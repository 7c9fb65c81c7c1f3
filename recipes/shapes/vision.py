"""Stage A: teach the vision towers and projectors what stands in each cell of a frame.

Dense labels give the decoder readable tokens to start from, and so spare it a long plateau:
the background; per cell the thing's shape, colour, place and radius; and at every token a
summary of the whole frame, which is a table of what has each colour and where.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn
from transformers import LlavaOnevisionForConditionalGeneration

from . import parallel
from .optim import Clock, Trainer
from .pair import FRAME_SIZE, GRID, video_tokens
from .rendering import render_frame
from .world import (
    BACKGROUNDS,
    COLORS,
    RADII,
    REGION_NAMES,
    SHAPES,
    FrameState,
    Thing,
    ThingState,
    nearest_region,
)

log = logging.getLogger(__name__)
COLOR_NAMES, BACKGROUND_NAMES = tuple(COLORS), tuple(BACKGROUNDS)
_PARTS = (len(BACKGROUNDS), len(SHAPES) + 1, len(COLORS) + 1, 3, len(REGION_NAMES))
_ENTRY = len(SHAPES) + 1 + 3  # of the summary: which shape a colour has, and its x, y and radius
_NEAR = 0.16  # a cell is labelled with a thing whose centre is this near to its own, per axis
TOKEN_SCALE = 0.05  # the size of video tokens after stage A, about that of word embeddings


@dataclass
class Cells:
    """Dense labels of frames; index 0 of a shape or colour means that there is none."""

    background: torch.Tensor
    shape: torch.Tensor
    color: torch.Tensor
    place: torch.Tensor
    region: torch.Tensor
    table_shape: torch.Tensor
    table_place: torch.Tensor


def normalized(frames: np.ndarray | torch.Tensor, noise: random.Random | None = None) -> torch.Tensor:
    """(..., side, side, 3) RGB bytes to (..., 3, side, side) pixels in -1..1.

    With ``noise`` they are disturbed as by a video codec: shifted colours, washed-out colour
    edges and grain.
    """
    pixels = torch.as_tensor(frames).movedim(-1, -3).float() / 127.5 - 1.0
    if noise is None:
        return pixels
    generator = torch.Generator().manual_seed(noise.getrandbits(60))
    lead = pixels.shape[:-3]
    flat = pixels.flatten(0, -4)
    shift = torch.randn((*lead[:-1], 1, 3, 1, 1), generator=generator) * 0.02
    flat = flat + shift.expand(*lead, 3, 1, 1).flatten(0, -4)
    if noise.random() < 0.6:
        luma = flat.mean(1, keepdim=True)
        flat = luma + F.avg_pool2d(flat - luma, 3, 1, 1, count_include_pad=False)
    if noise.random() < 0.3:
        soft = F.avg_pool2d(flat, 3, 1, 1, count_include_pad=False)
        flat = flat.lerp(soft, 0.4 * noise.random())
    flat = flat + torch.randn(flat.shape, generator=generator) * (0.03 * noise.random())
    return flat.clamp_(-1, 1).view(pixels.shape)


def random_state(rng: random.Random) -> FrameState:
    """A frame with one to four things of different colours anywhere on it, none touching another."""
    things: list[ThingState] = []
    colors = rng.sample(COLOR_NAMES, rng.choice((1, 2, 2, 3, 4)))
    for color in colors:
        radius = rng.uniform(0.95 * RADII["small"], 1.03 * RADII["large"])
        x, y = rng.uniform(0.17, 0.83), rng.uniform(0.17, 0.83)
        if any(np.hypot(x - t.x, y - t.y) < 1.1 * (radius + t.radius) for t in things):
            continue
        thing = Thing(rng.choice(SHAPES), color, "small", "stay", "center", "center")
        things.append(ThingState(thing, x, y, radius, color, visible=True))
    return FrameState(0, 0, rng.choice(BACKGROUND_NAMES), tuple(things))


def draw_frames(rng: random.Random, count: int) -> tuple[torch.Tensor, Cells]:
    """The pixels and labels of random frames."""
    states = [random_state(rng) for _ in range(count)]
    frames = np.stack([render_frame(state, FRAME_SIZE) for state in states])
    return normalized(frames[:, None], rng)[:, 0], label_cells(states)


def label_cells(states: Sequence[FrameState]) -> Cells:
    """What stands in each cell of each frame."""
    count = len(states)
    cells = Cells(
        background=torch.tensor([BACKGROUND_NAMES.index(state.background) for state in states]),
        shape=torch.zeros(count, GRID**2, dtype=torch.long),
        color=torch.zeros(count, GRID**2, dtype=torch.long),
        place=torch.zeros(count, GRID**2, 3),
        region=torch.zeros(count, GRID**2, dtype=torch.long),
        table_shape=torch.zeros(count, len(COLORS), dtype=torch.long),
        table_place=torch.zeros(count, len(COLORS), 3),
    )
    for index, state in enumerate(states):
        _label(cells, index, [thing for thing in state.things if thing.visible])
    return cells


def _label(cells: Cells, index: int, things: list[ThingState]) -> None:
    for t in things:
        color = COLOR_NAMES.index(t.color)
        cells.table_shape[index, color] = 1 + SHAPES.index(t.thing.shape)
        cells.table_place[index, color] = _place(t)
    for cell in range(GRID**2):
        x, y = (cell % GRID + 0.5) / GRID, (cell // GRID + 0.5) / GRID
        near = [t for t in things if max(abs(t.x - x), abs(t.y - y)) <= _NEAR]
        if not near:
            continue
        t = min(near, key=lambda t: (t.x - x) ** 2 + (t.y - y) ** 2)
        cells.shape[index, cell] = 1 + SHAPES.index(t.thing.shape)
        cells.color[index, cell] = 1 + COLOR_NAMES.index(t.color)
        cells.region[index, cell] = REGION_NAMES.index(nearest_region(t.x, t.y))
        cells.place[index, cell] = _place(t)


def _place(t: ThingState) -> torch.Tensor:
    return torch.tensor([(t.x - 0.5) * 4, (t.y - 0.5) * 4, (t.radius - 0.12) / 0.03])


class CellReader(nn.Module):
    """A linear reading of each video token; dropped after stage A."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.read = nn.Linear(width, sum(_PARTS) + len(COLORS) * _ENTRY)

    def forward(self, tokens: torch.Tensor) -> tuple[torch.Tensor, ...]:
        read = self.read(F.layer_norm(tokens, tokens.shape[-1:]))
        *cells, table = read.split([*_PARTS, len(COLORS) * _ENTRY], -1)
        return *cells, table.unflatten(-1, (len(COLORS), _ENTRY))


def cell_loss(reader: CellReader, tokens: torch.Tensor, cells: Cells) -> tuple[torch.Tensor, dict[str, float]]:
    """The loss of the labels at (frames, 16, width) tokens, and the share read rightly."""
    background, shape, color, place, region, table = reader(tokens)
    there = cells.shape > 0
    weight = torch.where(there, 4.0, 1.0)

    def entropy(scores: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
        return (F.cross_entropy(scores.movedim(-1, 1), truth, reduction="none") * weight).mean()

    table_shape, table_place = table.split([len(SHAPES) + 1, 3], -1)
    listed = cells.table_shape > 0
    true_shape = cells.table_shape[:, None].expand(-1, GRID**2, -1)
    weights = torch.where(true_shape > 0, 4.0, 1.0)
    summary = F.cross_entropy(table_shape.movedim(-1, 1), true_shape, reduction="none")
    summary = (summary * weights).mean()
    offset = table_place - cells.table_place[:, None]
    off = offset.movedim(1, 2)[listed]
    summary = summary + 2.0 * F.smooth_l1_loss(off, torch.zeros_like(off))
    everywhere = cells.background[:, None].expand(-1, GRID**2)
    loss = (
        F.cross_entropy(background.movedim(-1, 1), everywhere)
        + entropy(shape, cells.shape)
        + entropy(color, cells.color)
        + 2.0 * F.smooth_l1_loss(place[there], cells.place[there])
        + F.cross_entropy(region[there], cells.region[there])
        + 2.0 * summary
    )
    with torch.no_grad():
        right = {
            "background": (background.argmax(-1) == everywhere).float().mean().item(),
            "shape": (shape.argmax(-1) == cells.shape)[there].float().mean().item(),
            "color": (color.argmax(-1) == cells.color)[there].float().mean().item(),
            "region": (region.argmax(-1) == cells.region)[there].float().mean().item(),
            "place": (place[there] - cells.place[there]).abs().mean().item(),
            "table": (table_shape.argmax(-1) == true_shape)[true_shape > 0].float().mean().item(),
            "table_place": off.abs().mean().item(),
        }
    return loss, right


def train_vision(
    models: dict[str, LlavaOnevisionForConditionalGeneration],
    seconds: float,
    steps: int | None = None,
    batch: int = 96,
    seed: int = 5,
    report_every: int = 50,
) -> dict[str, list[float]]:
    """Run stage A on every model at once; returns each model's loss by step."""
    rng = random.Random(seed + 100 * parallel.rank())
    batch = max(1, batch // parallel.processes())
    readers = {n: CellReader(m.config.text_config.hidden_size) for n, m in models.items()}
    trainers = {
        name: Trainer(
            [model.model.vision_tower, model.model.multi_modal_projector, readers[name]],
            muon_lr=4e-3,
            adam_lr=2e-3,
        )
        for name, model in models.items()
    }
    losses: dict[str, list[float]] = {name: [] for name in models}
    clock, step = Clock(seconds, steps), 0
    while clock.running():
        pixels, cells = draw_frames(rng, batch)
        report = {}
        for name, model in models.items():
            tokens = video_tokens(model, pixels[None])[0, :-1].unflatten(0, (batch, -1))
            loss, report[name] = cell_loss(readers[name], tokens, cells)
            loss.backward()
            trainers[name].step(clock.rate_factor(step))
            losses[name].append(loss.item())
        if step % report_every == 0 and parallel.rank() == 0:
            told = {n: {k: round(v, 3) for k, v in r.items()} for n, r in report.items()}
            last = {n: round(v[-1], 3) for n, v in losses.items()}
            log.info("vision %d %.0fs %s %s", step, clock.elapsed, last, told)
        step += 1
    for model in models.values():
        _scale_tokens(model, draw_frames(rng, 64)[0])
    return losses


@torch.no_grad()
def _scale_tokens(model: LlavaOnevisionForConditionalGeneration, pixels: torch.Tensor) -> None:
    """Scale the projector so that video tokens are as large as word embeddings."""
    tokens = video_tokens(model, pixels[None])[0, :-1]
    factor = TOKEN_SCALE / tokens.std().item()
    last = model.model.multi_modal_projector.linear_2
    last.weight.mul_(factor)
    last.bias.mul_(factor)
