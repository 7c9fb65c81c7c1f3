"""Auxiliary heads of stages B to D: at each video token, a middle layer of the decoder must know what
the video has shown up to this frame.  They are dropped after training.

A question finds a thing at the tokens that show it, and so must find the number of its scene there.
In stage D another head reads, where a question names a thing, what the video has shown of it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

from .pair import TOKENS_PER_FRAME
from .world import (
    ACTIONS,
    BACKGROUNDS,
    COLORS,
    MAX_SCENE_FRAMES,
    MAX_SCENES,
    REGION_NAMES,
    SHAPES,
    Clip,
    FrameState,
    Thing,
    ThingState,
    nearest_region,
)

_SLOTS = 2
_SLOT_PARTS = (
    len(SHAPES) + 1,
    len(COLORS) + 1,
    2,
    len(REGION_NAMES),
    len(REGION_NAMES),
    len(ACTIONS),
    len(COLORS),
)
_PARTS = (MAX_SCENES, MAX_SCENE_FRAMES, len(BACKGROUNDS), *(_SLOT_PARTS * _SLOTS))
_SLOT_NAMES = ("shape", "color", "size", "start", "now", "action", "turned")
PART_NAMES = (
    "scene",
    "frame",
    "background",
    *(f"{name}{slot}" for slot in range(1, _SLOTS + 1) for name in _SLOT_NAMES),
)
# The hardest parts weigh more: where things are and what they do, and above all the scene's number,
# by which most questions find their frames.
_WEIGHTS = {"scene": 8.0, "number": 3.0, "start": 2.0, "now": 2.0, "action": 2.0}
_NAME_PARTS = {"number": MAX_SCENES, "start": len(REGION_NAMES), "action": len(ACTIONS), "size": 2}
_UNKNOWN = -100
NAME_PARTS = len(_NAME_PARTS)
_ACTION_FROM_FRAME = 3  # earlier, what a thing does cannot be known
_COLOR_NAMES, _BACKGROUND_NAMES = tuple(COLORS), tuple(BACKGROUNDS)


def frame_labels(clips: list[Clip]) -> torch.Tensor:
    """(video tokens of all clips, parts) labels; -100 where a part has none."""
    frames = torch.tensor([_labels(state) for clip in clips for state in clip.states])
    return frames.repeat_interleave(TOKENS_PER_FRAME, dim=0)


def _labels(state: FrameState) -> list[int]:
    labels = [state.scene, state.frame_in_scene, _BACKGROUND_NAMES.index(state.background)]
    for slot in range(_SLOTS):
        if slot < len(state.things):
            labels += _thing_labels(state.things[slot], state.frame_in_scene)
        else:
            labels += [0, 0, *([_UNKNOWN] * (len(_SLOT_PARTS) - 2))]
    return labels


def _thing_labels(state: ThingState, frame: int) -> list[int]:
    thing: Thing = state.thing
    turned = state.color != thing.color
    late = frame >= _ACTION_FROM_FRAME and (thing.action != "recolor" or turned)
    return [
        1 + SHAPES.index(thing.shape),
        1 + _COLOR_NAMES.index(thing.color),
        int(thing.size == "large"),
        REGION_NAMES.index(thing.start),
        REGION_NAMES.index(nearest_region(state.x, state.y)),
        ACTIONS.index(thing.action) if late else _UNKNOWN,
        _COLOR_NAMES.index(state.color) if turned else _UNKNOWN,
    ]


class _Head(nn.Module):
    """Reads all parts from one hidden state."""

    def __init__(self, width: int, parts: dict[str, int]) -> None:
        super().__init__()
        self.parts = parts
        self.read = nn.Linear(width, sum(parts.values()))

    def forward(self, hidden: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, dict[str, float]]:
        """The mean loss over the parts, and the share of each part's labels read rightly.

        ``hidden``: (n, width), ``labels``: (n, parts). Where nothing is known, the loss is 0 and there are no shares.
        """
        read = self.read(F.layer_norm(hidden, hidden.shape[-1:]))
        losses, shares = [], {}
        for name, part, truth in zip(self.parts, read.split(list(self.parts.values()), -1), labels.T, strict=True):
            known = truth != _UNKNOWN
            if not known.any():
                continue
            weight = _WEIGHTS.get(name.rstrip("12"), 1.0)
            losses.append(weight * F.cross_entropy(part, truth, ignore_index=_UNKNOWN))
            shares[name] = (part.argmax(-1) == truth)[known].float().mean().item()
        return torch.stack(losses).mean() if losses else read.sum() * 0, shares


class FrameHead(_Head):
    """Reads what the video has shown up to a frame."""

    def __init__(self, width: int) -> None:
        super().__init__(width, dict(zip(PART_NAMES, _PARTS, strict=True)))


class NameHead(_Head):
    """Reads what a name in a question refers to."""

    def __init__(self, width: int) -> None:
        super().__init__(width, _NAME_PARTS)


def name_labels(clip: Clip) -> dict[str, list[int]]:
    """The labels of each thing, by its name."""
    return {
        thing.name: [
            number,
            REGION_NAMES.index(thing.start),
            ACTIONS.index(thing.action),
            int(thing.size == "large"),
        ]
        for number, scene in enumerate(clip.scenes)
        for thing in scene.things
    }
