"""Texts of tokens: how far two agree, a prefix by name, and where an answer ends. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from pvlm_protocols.messages import FinishReason, Parent, Sampling


class Place(NamedTuple):
    """A prefix by name: the first ``offset`` tokens of a window, and then ``token``."""

    window: int
    offset: int
    token: int

    @classmethod
    def of(cls, parent: Parent) -> Place:
        """The prefix that a prepared window continues."""
        return cls(parent.window, parent.offset, parent.token)


def agreement(one: Sequence[int], other: Sequence[int]) -> int:
    """The length of the longest common prefix."""
    for index, (a, b) in enumerate(zip(one, other, strict=False)):
        if a != b:
            return index
    return min(len(one), len(other))


def finish_reason(tokens: Sequence[int], sampling: Sampling, *, before: int = 0) -> FinishReason | None:
    """Why an answer that ends with ``tokens``, after ``before`` others, is complete; None if it is not."""
    if tokens and tokens[-1] in sampling.end_token_ids:
        return "stop"
    return "length" if before + len(tokens) >= sampling.max_tokens else None
