"""Branches of a session in a transformers model: one pass over a tree of continuations.

transformers' cache has no segments. So a pass over a session and its branches gets a cache that shows the rows of all,
one after the other, and a mask that says which of them a token sees (tree attention).
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from itertools import accumulate
from typing import Any, Self

import torch
from transformers import DynamicCache

from ..branches import BranchingSession
from ..session import AfterLayer
from .session import FamilySession, after_each_layer

MASKED = ("sdpa", "eager")
"""Kinds of attention of transformers that take a mask of every token and row."""


class BranchingFamilySession(BranchingSession, FamilySession):
    """A `FamilySession` that offers branches. The cache of a branch has its own rows only."""

    def _extend(self, tokens: Sequence[int], row: int, position: int, after_layer: AfterLayer | None) -> torch.Tensor:
        if self._trunk is None:
            return super()._extend(tokens, row, position, after_layer)
        return tree_pass([(self, tokens)], after_layer)[0]

    def _new_branch(self, capacity: int, room: int) -> Self:
        branch = type(self).__new__(type(self))
        super(FamilySession, branch).__init__(self._model, self._prompt, capacity, self._vocab_size)
        branch._embeddings, branch._ends = None, []
        branch._cache = DynamicCache(config=self._model.config.get_text_config())
        return branch

    def _take_rows(self, branch: Self, count: int) -> None:
        for own, rows in zip(_filled(self), _filled(branch), strict=True):
            own.update(rows.keys[:, :, :count], rows.values[:, :, :count])


class _TreeCache(DynamicCache):
    """What a pass over a trunk and its branches sees and adds: ``added`` has the keys and values of each layer.

    The caches of the sessions stay as they are, so that a pass may be given up.
    """

    def __init__(self, sessions: Sequence[BranchingFamilySession]) -> None:
        super().__init__(config=sessions[0]._model.config.get_text_config())
        self._sessions = sessions
        self.added: list[tuple[torch.Tensor, torch.Tensor]] = []

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        self.added.append((key_states, value_states))
        rows = [_filled(session)[layer_idx] for session in self._sessions]
        keys, values = ([getattr(each, name) for each in rows if each.is_initialized] for name in ("keys", "values"))
        return torch.cat([*keys, key_states], dim=-2), torch.cat([*values, value_states], dim=-2)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return sum(_rows(session) for session in self._sessions)


@torch.no_grad()
def tree_pass(
    parts: Sequence[tuple[BranchingFamilySession, Sequence[int]]], after_layer: AfterLayer | None
) -> list[torch.Tensor]:
    """Run tokens of a session and its branches in one pass; return the logits of each, float32 ``(n, vocab_size)``.

    Raises ValueError for branches of different sessions.
    """
    trunk = parts[0][0]._trunk or parts[0][0]
    if any((session._trunk or session) is not trunk for session, _ in parts):
        raise ValueError("a pass is shared by a session and its branches")
    seen = [trunk, *(session for session, _ in parts if session is not trunk)]
    model, device = trunk._model, trunk._device
    sizes = [len(tokens) for _, tokens in parts]
    cache = _TreeCache(seen)
    begins = [session._first_position + session._length for session, _ in parts]
    places = [torch.arange(begin, begin + size, device=device) for begin, size in zip(begins, sizes, strict=True)]
    positions = torch.cat(places).expand(len(trunk._prompt.positions), -1)
    ids = torch.tensor([[token for _, tokens in parts for token in tokens]], device=device)
    mask = _mask([session for session, _ in parts], sizes, seen).to(device)
    bias = torch.zeros(mask.shape, dtype=model.dtype, device=device).masked_fill(~mask, torch.finfo(model.dtype).min)
    told = nullcontext() if after_layer is None else after_each_layer(trunk._decoder_layers, after_layer)
    with told:
        logits = trunk._run(positions, past_key_values=cache, input_ids=ids, attention_mask=bias[None, None])
    for layer, (keys, values) in enumerate(cache.added):
        own = zip(torch.split(keys, sizes, dim=-2), torch.split(values, sizes, dim=-2), strict=True)
        for (session, _), rows in zip(parts, own, strict=True):
            _filled(session)[layer].update(*rows)
    return list(torch.split(logits, sizes))


def _mask(
    sessions: Sequence[BranchingFamilySession], sizes: Sequence[int], seen: Sequence[BranchingFamilySession]
) -> torch.Tensor:
    """Which rows a token sees, of all rows of ``seen`` and then the new ones: bool ``(tokens, rows + tokens)``.

    ``sizes``: the new tokens of each of ``sessions``.
    """
    *begins, old = accumulate((_rows(session) for session in seen), initial=0)
    begin_of = dict(zip(map(id, seen), begins, strict=True))
    mask = torch.zeros(sum(sizes), old + sum(sizes), dtype=torch.bool)
    at = 0
    for session, size in zip(sessions, sizes, strict=True):
        own, begin, new = mask[at : at + size], begin_of[id(session)], old + at
        if session._trunk is not None:
            own[:, : session._prompt_rows + session._shared] = True
        own[:, begin : begin + _rows(session)] = True
        own[:, new : new + size] = torch.ones(size, size, dtype=torch.bool).tril()
        at += size
    return mask


def _rows(session: BranchingFamilySession) -> int:
    """Rows in a session's own cache."""
    return session._length - session._shared if session._trunk else session._prompt_rows + session._length


def _filled(session: BranchingFamilySession) -> list[Any]:
    """The layers of a session's own cache."""
    assert session._cache is not None  # the prefill or `_new_branch` made it
    return session._cache.layers
