"""Prune masks as counts and as bits. Imports no torch."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray


def kept_count(m: int, ratio: float) -> int:
    """How many of ``m`` video tokens remain if the share ``ratio`` in [0, 1) is dropped.

    ``(1 - ratio) * m`` rounded to the nearest number, halves up, and at least 1 (0 only for m = 0). Raises ValueError.
    """
    if not 0 <= ratio < 1:
        raise ValueError(f"the pruning ratio is {ratio}: it must be in [0, 1)")
    if m < 0:
        raise ValueError(f"there are {m} video tokens")
    # 1 - 0.9 is a little less than 0.1: the small addition keeps exact halves.
    return min(m, max(1, math.floor((1 - ratio) * m + 0.5 + 1e-9)))


def pack_mask(mask: NDArray[np.bool_]) -> bytes:
    """A bool ``(m,)`` mask as ``ceil(m / 8)`` bytes, most significant bit first, unused bits zero."""
    return np.packbits(mask).tobytes()


def unpack_mask(bits: bytes, m: int) -> NDArray[np.bool_]:
    """The inverse of `pack_mask`: bool ``(m,)``, writable. Raises ValueError if ``bits`` is not a mask of m bits."""
    if m < 0 or len(bits) != (m + 7) // 8:
        raise ValueError(f"{len(bits)} bytes cannot be a mask over {m} video tokens, which takes {(m + 7) // 8}")
    unpacked = np.unpackbits(np.frombuffer(bits, np.uint8))
    if unpacked[m:].any():
        raise ValueError(f"bits after the {m} video tokens of a mask are set")
    return unpacked[:m].astype(np.bool_)
