"""Memory for weights, in huge pages if Linux has them, because they need fewer address look-ups."""

from __future__ import annotations

import math
import mmap
from contextlib import suppress

import torch
from torch import Tensor

_BLOCK_BYTES = 64 << 20
_ALIGNMENT = 64


class Blocks:
    """Tensors side by side in large blocks.

    A block is freed with the last of its tensors. Unwritten parts take no memory.
    """

    def __init__(self) -> None:
        self._free = torch.empty(0, dtype=torch.uint8)

    def zeros(self, *shape: int, dtype: torch.dtype) -> Tensor:
        """The same as `torch.zeros` on the CPU."""
        size = math.prod(shape) * dtype.itemsize
        if size > len(self._free):
            block = mmap.mmap(-1, max(size, _BLOCK_BYTES))
            with suppress(AttributeError, OSError):  # another system, or a kernel built without them
                block.madvise(mmap.MADV_HUGEPAGE)
            self._free = torch.frombuffer(block, dtype=torch.uint8)
        taken, self._free = self._free[:size], self._free[-(-size // _ALIGNMENT) * _ALIGNMENT :]
        return taken.view(dtype).view(shape)
