"""Agreement of two token lists. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence


def agreement(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens at the beginning of both lists are the same. The lists may differ in length."""
    pairs = zip(a, b, strict=False)
    return next((index for index, (one, other) in enumerate(pairs) if one != other), min(len(a), len(b)))
