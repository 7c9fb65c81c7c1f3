"""The bundled target is as deep as it needs to be."""

from __future__ import annotations

import random

import pytest

pytest.importorskip("transformers")
import torch
from torch import Tensor, nn

from pvlm.config import bundled
from shapes.packing import Batch, Packer
from shapes.pair import load_checkpoint
from shapes.training import run_model
from shapes.world import questions, sample_clip

KINDS = {"describe", "list", "color", "which_scene", "last"}


class Skipped(nn.Module):
    """In place of a layer: what came in, or what is given."""

    attention_type = "full_attention"

    def __init__(self, instead: Tensor | None = None) -> None:
        super().__init__()
        self.instead = instead

    def forward(self, hidden: Tensor, *_: object, **__: object) -> Tensor:
        return hidden if self.instead is None else self.instead


def changed_by(model: nn.Module, batch: Batch, wanted: set[int]) -> set[int]:
    """Those of the wanted layers without which another token has the highest score somewhere in the answers."""
    language = model.model.language_model
    layers = list(language.layers)
    entered: list[Tensor] = []
    handles = [layer.register_forward_pre_hook(lambda _, given: entered.append(given[0])) for layer in layers]
    usual = run_model(model, batch).scores.argmax(-1)
    for handle in handles:
        handle.remove()
    found = set()
    for index in sorted(wanted):
        before = [*(Skipped() for _ in range(index)), Skipped(entered[index])]
        language.layers = nn.ModuleList([*before, *layers[index + 1 :]])
        if not torch.equal(run_model(model, batch).scores.argmax(-1), usual):
            found.add(index)
    language.layers = nn.ModuleList(layers)
    return found


@torch.no_grad()
def test_without_any_one_layer_answers_change() -> None:
    """Most layers show it on a short clip; the others are asked about longer ones."""
    model, tokenizer = load_checkpoint(bundled("target"))
    model.eval()
    left = set(range(len(model.model.language_model.layers)))
    assert len(left) == 28
    for seed, scenes, frames in ((2, 4, 24), (5, 8, 48), (3, 8, 48)):
        clip = sample_clip(random.Random(seed), scenes, frames)
        asked = [question for question in questions(clip) if question.kind in KINDS]
        left -= changed_by(model, Packer(tokenizer).pack([clip], [asked], None), left)
        if not left:
            break
    assert not left
