"""The saved state of a training run: everything that an exact continuation needs."""

from __future__ import annotations

import copy
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import nn
from transformers import LlavaOnevisionForConditionalGeneration, PreTrainedTokenizerFast

from .optim import Trainer
from .pair import save_checkpoint

_FILE, _HEADS_FILE = "training.pt", "heads.pt"


@dataclass
class State:
    """A model in training. ``average`` is the running mean of its weights, which is what is used afterwards."""

    model: LlavaOnevisionForConditionalGeneration
    heads: nn.ModuleList
    trainer: Trainer
    step: int = 0
    active_seconds: float = 0.0
    average: dict[str, torch.Tensor] = field(default_factory=dict)

    @torch.no_grad()
    def follow(self, horizon: int) -> None:
        """Move the average towards the weights; it looks back about ``horizon`` steps."""
        if not self.average:
            self.average = {name: p.detach().clone() for name, p in self.model.named_parameters()}
        share = 1 / min(horizon, self.step + 2)
        for name, parameter in self.model.named_parameters():
            self.average[name].lerp_(parameter, share)

    def averaged(self) -> LlavaOnevisionForConditionalGeneration:
        """A copy of the model with the average as its weights."""
        result = copy.deepcopy(self.model)
        result.load_state_dict(self.average, strict=False)
        return result.eval()

    def save(self, folder: Path, tokenizer: PreTrainedTokenizerFast) -> None:
        """Write the state, and the averaged model and its heads beside it, to start other runs from.

        Each file is replaced at once, so that a stop at any moment leaves whole files.
        """
        folder.mkdir(parents=True, exist_ok=True)
        content = {
            "model": self.model.state_dict(),
            "heads": self.heads.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.trainer.optimizers],
            "average": self.average,
            "step": self.step,
            "active_seconds": self.active_seconds,
        }
        with TemporaryDirectory(dir=folder) as temporary:
            save_checkpoint(self.averaged(), tokenizer, temporary)
            torch.save(content, Path(temporary) / _FILE)
            torch.save(content["heads"], Path(temporary) / _HEADS_FILE)
            for path in Path(temporary).iterdir():
                os.replace(path, folder / path.name)

    def load(self, folder: Path) -> None:
        """Take over what ``save`` wrote."""
        content = torch.load(folder / _FILE)
        self.model.load_state_dict(content["model"])
        self.heads.load_state_dict(content["heads"])
        for optimizer, state in zip(self.trainer.optimizers, content["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        self.average = content["average"]
        self.step, self.active_seconds = content["step"], content["active_seconds"]


def exists(folder: Path) -> bool:
    """Whether a folder holds a saved state."""
    return (folder / _FILE).exists()


def load_heads(heads: nn.ModuleList, folder: Path) -> bool:
    """Take over the heads saved in a folder; returns whether it holds any."""
    if not (folder / _HEADS_FILE).exists():
        return False
    heads.load_state_dict(torch.load(folder / _HEADS_FILE))
    return True


def copy_heads(source: Path, folder: Path) -> None:
    """Copy the saved heads, if any, to another checkpoint."""
    if (source / _HEADS_FILE).exists():
        shutil.copy(source / _HEADS_FILE, folder)
