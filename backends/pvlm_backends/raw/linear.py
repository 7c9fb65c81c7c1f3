"""Products with weights, computed in float32 even if a weight takes two bytes.

A pass over few tokens reads every weight once, and on the CPU the reading takes most of its time. Checkpoints are
released in bfloat16 or float16; after widening to float32, half of the bytes hold nothing. FBGEMM, a part of torch on
x86, multiplies float32 activations by packed float16 weights. It widens them in registers and sums float32 products.
"""

from __future__ import annotations

import warnings
from functools import cache

import torch
from torch import Tensor

_ROUNDING = 2.0**-25
"""The largest change of a packed weight: half a unit in the last place of a float32 between 1/2 and 1.

Every bfloat16 from 2^-17 to 65504 is a float16; smaller ones change by no more than this.
"""


class Linear:
    """``x @ weight + bias`` for ``x`` of shape ``(n, in)``.

    Args:
        weight: ``(in, out)``.
        bias: ``(out,)``, or None.

    ``weights`` is the number of weights, ``bytes`` their size in memory.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self._weight, self._bias = weight, bias
        self.weights = weight.numel()
        self.bytes = weight.nbytes

    def write(self, x: Tensor, out: Tensor) -> Tensor:
        """Write the product to ``out``, ``(n, out)``, and return it."""
        if self._bias is None:
            return torch.mm(x, self._weight, out=out)
        return torch.addmm(self._bias, x, self._weight, out=out)

    def add_to(self, total: Tensor, x: Tensor) -> None:
        """Add the product without bias to ``total``, ``(n, out)``."""
        total.addmm_(x, self._weight)


class HalfLinear(Linear):
    """The same with packed float16 weights, for one thread; torch runs this operator on a single one."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__(weight, bias)
        self._weight = torch.fbgemm_pack_gemm_matrix_fp16(weight.t().contiguous())
        self.bytes = 2 * self.weights

    def write(self, x: Tensor, out: Tensor) -> Tensor:
        return torch.fbgemm_linear_fp16_weight_fp32_activation(x, self._weight, self._bias, output=out)

    def add_to(self, total: Tensor, x: Tensor) -> None:
        total.add_(torch.fbgemm_linear_fp16_weight_fp32_activation(x, self._weight, None))


class ThreadedHalfLinear(Linear):
    """The same for several threads, by an operator whose call takes 20 µs longer."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__(weight, bias)
        self._weight = torch.ops.quantized.linear_prepack_fp16(weight.t().contiguous(), None)
        self.bytes = 2 * self.weights

    def write(self, x: Tensor, out: Tensor) -> Tensor:
        product = torch.ops.quantized.linear_dynamic_fp16(x, self._weight)
        return out.copy_(product) if self._bias is None else torch.add(product, self._bias, out=out)

    def add_to(self, total: Tensor, x: Tensor) -> None:
        total.add_(torch.ops.quantized.linear_dynamic_fp16(x, self._weight))


def linear(weight: Tensor, bias: Tensor | None = None) -> Linear:
    """Return the fastest product that keeps the values of ``weight``, for torch's current number of threads."""
    if weight.device.type == "cpu" and weight.dtype == torch.float32:
        half = _half_linear(torch.get_num_threads())
        if half is not Linear and halves_suffice(weight):
            return half(weight, bias)
    return Linear(weight, bias)


def halves_suffice(weight: Tensor) -> bool:
    """Return whether float16 changes no number of a float32 weight by more than 2^-25."""
    # In parts, to avoid a second copy of a large matrix.
    return all(bool((part.half() - part).abs_().max() <= _ROUNDING) for part in torch.split(weight, 16))


@cache
def _half_linear(threads: int) -> type[Linear]:
    """`Linear` itself if this torch lacks the operators, which are deprecated and need FBGEMM."""
    candidates: tuple[type[Linear], ...] = (ThreadedHalfLinear,) if threads > 1 else (HalfLinear, ThreadedHalfLinear)
    for candidate in candidates:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch says once that an operator is deprecated
                candidate(torch.eye(2), None).write(torch.eye(2), torch.empty(2, 2))
        except (AttributeError, RuntimeError, TypeError):
            continue
        return candidate
    return Linear
