"""What the vision towers of the Qwen families share: parts of a video, and rotary positions by row and column.

Patches stay in the order of the tokens that they become.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

_PATCHES_AT_ONCE = 16384
"""A bound for the activations: no attention crosses two frame pairs, so a video can run in parts."""


def parts_of(pixels: Tensor, on_progress: Callable[[], None]) -> Iterator[Tensor]:
    """Split `PatchProcessor.patches` between frame pairs; ``on_progress`` is called before each part."""
    _, height, width, patches, _ = pixels.shape
    for part in torch.split(pixels, max(1, _PATCHES_AT_ONCE // (height * width * patches))):
        on_progress()
        yield part


def axis_frequencies(head_dim: int, theta: float, device: torch.device) -> Tensor:
    """float32 ``(head_dim / 4,)``: the frequencies of an axis, row or column."""
    quarter = head_dim // 4
    exponents = torch.arange(quarter, dtype=torch.float32, device=device) / quarter
    return 1.0 / theta**exponents


def patch_places(height: int, width: int, merge: int, device: torch.device) -> Tensor:
    """int64 ``(h, w, merge * merge, 2)``: row and column of each patch of a frame, whose sides count tokens."""
    rows = torch.arange(height * merge, device=device).view(height, 1, merge, 1)
    columns = torch.arange(width * merge, device=device).view(1, width, 1, merge)
    shape = (height, width, merge, merge)
    return torch.stack([rows.expand(shape), columns.expand(shape)], dim=-1).flatten(2, 3)


def rotation(places: Tensor, frequencies: Tensor) -> Tensor:
    """complex64 ``(..., 1, head_dim / 2)`` of places ``(..., 2)``: half of a head turns by row, half by column."""
    angles = (places[..., None].float() * frequencies).flatten(-2)
    return torch.polar(torch.ones_like(angles), angles)[..., None, :]


def rotate(heads: Tensor, turn: Tensor) -> None:
    """Turn heads of queries and keys ``(..., heads, head_dim)`` in place; a pair's halves lie half a head apart."""
    first, second = heads.chunk(2, dim=-1)
    turned = torch.complex(first.float(), second.float()) * turn
    first.copy_(turned.real)
    second.copy_(turned.imag)
