"""A kept prefix, as all plug-ins have it: rows of one block of a prompt, after those of its parent."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from pvlm_protocols.prefixes import KeptPrefix

from .processing import PreparedPrompt
from .processing.prompt import Pixels, Rows


@dataclass(frozen=True)
class EarlyRows:
    """The early states of a block's video tokens: ``first`` and ``last`` as in `EarlyStates`, each ``(m, d)``, in the
    order of the prompt's tokens.
    """

    layer: int
    first: torch.Tensor
    last: torch.Tensor


@dataclass(frozen=True, eq=False)
class Prefix:
    """See `pvlm_protocols.prefixes.KeptPrefix`."""

    key: bytes
    tokens: int
    kept: Rows
    """The tokens of its own block that have a row."""
    early: EarlyRows | None
    content: Any
    """The rows, as the plug-in stores them."""
    content_bytes: int
    parent: Prefix | None

    @property
    def nbytes(self) -> int:
        """Memory of its own, in bytes."""
        early = 0 if self.early is None else self.early.first.nbytes + self.early.last.nbytes
        return self.content_bytes + early + self.kept.nbytes

    @property
    def early_layer(self) -> int | None:
        """The layer of its early states."""
        return None if self.early is None else self.early.layer

    @property
    def chain(self) -> list[Prefix]:
        """All prefixes whose rows it needs, its own last."""
        return [*([] if self.parent is None else self.parent.chain), self]

    @property
    def rows(self) -> int:
        """Rows of the whole chain."""
        return sum(len(prefix.kept) for prefix in self.chain)


def find_prefix(prompt: PreparedPrompt, find: Callable[[bytes], KeptPrefix | None] | None) -> Prefix | None:
    """Return the longest kept beginning of a prompt; see `pvlm_protocols.prefixes.KeptPrefixes.open_on`.

    ``find``: None where nothing is kept.
    """
    if find is None:
        return None
    for tokens, key in reversed(prompt.keys().items()):
        if isinstance(found := find(key), Prefix) and found.tokens == tokens:
            return found
    return None


def visuals_after(prompt: PreparedPrompt, prefix: Prefix | None) -> list[Pixels]:
    """Return the videos and images that a kept prefix does not cover: the vision tower runs over them."""
    return [visual for visual in prompt.visuals if prefix is None or visual.row >= prefix.tokens]
