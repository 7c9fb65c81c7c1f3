"""Products with weights in panels of 16 outputs, by the compiled kernels."""

from __future__ import annotations

from ctypes import byref

import torch
from torch import Tensor

from ..raw.linear import Linear, halves_suffice
from .blocks import Blocks
from .library import Matrix, kernels

PANEL = 16


class PanelLinear(Linear):
    """`Linear` in float32. Weights are stored as float16 if that keeps their values: see `halves_suffice`.

    ``blocks``: the memory for the weights.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, blocks: Blocks) -> None:
        super().__init__(weight, bias)
        inputs, outputs = weight.shape
        halves = halves_suffice(weight)
        panels = -(-outputs // PANEL)
        self._weight = blocks.zeros(panels, inputs, PANEL, dtype=torch.half if halves else torch.float32)
        whole = outputs // PANEL
        self._weight[:whole].copy_(torch.unflatten(weight[:, : whole * PANEL], 1, (whole, PANEL)).transpose(0, 1))
        if whole < panels:
            self._weight[whole, :, : outputs - whole * PANEL].copy_(weight[:, whole * PANEL :])
        self.bytes = self._weight.nbytes
        self.matrix = Matrix(
            panels=self._weight.data_ptr(),
            bias=None if bias is None else bias.data_ptr(),
            inputs=inputs,
            outputs=outputs,
            halves=halves,
        )
        self._threads = torch.get_num_threads()

    def write(self, x: Tensor, out: Tensor) -> Tensor:
        self._multiply(x, out, add=False)
        return out

    def add_to(self, total: Tensor, x: Tensor) -> None:
        self._multiply(x, total, add=True)

    def _multiply(self, x: Tensor, out: Tensor, *, add: bool) -> None:
        x = x.contiguous()
        kernels().multiply(byref(self.matrix), self._threads, x.data_ptr(), len(x), out.data_ptr(), add)
