"""Muon for the layers' matrices and AdamW for the rest, with rates set by elapsed time."""

from __future__ import annotations

import time
from collections.abc import Iterable

import torch
from torch import nn

from . import parallel

_NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)


def orthogonalized(matrix: torch.Tensor, steps: int = 5) -> torch.Tensor:
    """The nearest matrix with equal singular values, by Newton-Schulz steps in float32.

    PyTorch's own Muon works in bfloat16, which is very slow on processors without it.
    """
    a, b, c = _NEWTON_SCHULZ
    flip = matrix.shape[-2] > matrix.shape[-1]
    x = matrix.mT if flip else matrix
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if flip else x


class Muon(torch.optim.Optimizer):
    """Momentum whose matrix updates are orthogonalized and scaled to AdamW's usual size."""

    def __init__(
        self,
        matrices: Iterable[nn.Parameter],
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.02,
    ) -> None:
        super().__init__(list(matrices), {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, _closure: None = None) -> None:  # type: ignore[override]
        """Update every matrix that has a gradient; equal shapes are done together."""
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[nn.Parameter]] = {}
            for matrix in group["params"]:
                if matrix.grad is not None:
                    by_shape.setdefault(matrix.shape, []).append(matrix)
            for shape, matrices in by_shape.items():
                updates = []
                for matrix in matrices:
                    state = self.state[matrix]
                    if not state:
                        state["momentum"] = torch.zeros_like(matrix)
                    state["momentum"].lerp_(matrix.grad, 1 - group["momentum"])
                    updates.append(matrix.grad.lerp(state["momentum"], group["momentum"]))
                rate = group["lr"] * 0.2 * max(shape) ** 0.5
                for matrix, update in zip(matrices, _shared_updates(updates), strict=True):
                    matrix.mul_(1 - group["lr"] * group["weight_decay"])
                    matrix.add_(update, alpha=-rate)


def _shared_updates(updates: list[torch.Tensor]) -> torch.Tensor:
    """All updates orthogonalized; each process does its share of them."""
    stacked = torch.stack(updates)
    if parallel.processes() == 1:
        return orthogonalized(stacked)
    mine = slice(parallel.rank(), None, parallel.processes())
    done = torch.zeros_like(stacked)
    if len(stacked[mine]):
        done[mine] = orthogonalized(stacked[mine])
    return parallel.total(done)


class Trainer:
    """The optimizers of one model."""

    def __init__(self, modules: Iterable[nn.Module], muon_lr: float, adam_lr: float) -> None:
        named = [item for module in modules for item in module.named_parameters()]
        unique = {id(p): (name, p) for name, p in named if p.requires_grad}
        matrices = [p for name, p in unique.values() if p.ndim == 2 and ".layers." in name]
        chosen = {id(p) for p in matrices}
        self.others = [p for key, (_, p) in unique.items() if key not in chosen]
        self.matrices = matrices
        self.optimizers: list[torch.optim.Optimizer] = []
        if matrices:
            self.optimizers.append(Muon(matrices, lr=muon_lr))
        self.optimizers.append(
            torch.optim.AdamW(self.others, lr=adam_lr, betas=(0.9, 0.98), weight_decay=0.0, fused=True)
        )
        self.rates = [optimizer.param_groups[0]["lr"] for optimizer in self.optimizers]

    def step(self, factor: float, clip: float = 1.0) -> None:
        """Clip the gradients, update at ``factor`` times the base rates and clear the gradients."""
        parallel.average_gradients([*self.matrices, *self.others])
        torch.nn.utils.clip_grad_norm_([*self.matrices, *self.others], clip)
        for optimizer, rate in zip(self.optimizers, self.rates, strict=True):
            optimizer.param_groups[0]["lr"] = rate * factor
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)


class Clock:
    """Wall-clock progress of a stage; a schedule by time ends in time whatever the speed.

    With ``steps`` the stage goes by its steps instead, so that it does the same on any machine.
    """

    def __init__(self, seconds: float, steps: int | None = None, done: int = 0) -> None:
        self.seconds, self.steps, self.done = seconds, steps, done
        self.began = time.monotonic()
        self.progress = 0.0

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.began

    def running(self) -> bool:
        """Whether another step is to be done; all processes hear the same."""
        share = self.done / self.steps if self.steps else self.elapsed / self.seconds
        self.progress = parallel.first_says(min(1.0, share))
        self.done += 1
        return self.progress < 1.0

    def rate_factor(self, step: int, warmup: int = 40, hold: float = 0.35) -> float:
        """Linear warm-up over steps, constant for a share of the time, then linear to zero."""
        decay = min(1.0, (1.0 - self.progress) / (1.0 - hold))
        return min(1.0, (step + 1) / warmup) * max(decay, 0.003)
