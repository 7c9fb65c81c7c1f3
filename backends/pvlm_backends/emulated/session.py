"""One prompt in an emulated model."""

from __future__ import annotations

import select
import time
from collections.abc import Iterator, Sequence
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray

from ..branches import BranchingSession
from ..prefix import Prefix
from ..processing import PreparedPrompt
from ..session import AfterLayer
from .model import EmulatedModel
from .text import Guesses, Text

HIDDEN_SIZE = 8
SURE = 30.0
"""Logit of the model's token. At temperature 1 its probability is 1 - 6e-11."""
LIKELY = 4.0
"""Logit of a draft's best other token; the next ones have 1 less each, and all others 0."""
SPIN_S = 0.0002
"""Time before its deadline at which a pass stops sleeping and polls the clock.

A sleep of 5 ms ends 0.13 ms late (median on an AMD EPYC with Linux 6), so the poll always meets the deadline.
"""


class EmulatedSession(BranchingSession):
    """Answers with its text for any input, and takes the given times.

    A pass ends at a deadline that is set at its start, so computing its logits costs no extra time. Its layers take
    equal times.
    """

    def __init__(
        self,
        model: EmulatedModel,
        text: Text,
        guesses: Guesses | None,
        prompt: PreparedPrompt,
        capacity: int,
        device: torch.device,
        prefix: Prefix | None,
    ) -> None:
        """``guesses``: None for a target, which is always right."""
        super().__init__(prompt, capacity, model.vocab_size, model.layers, prefix)
        self._model = model
        self._text = text
        self._guesses = guesses
        self._device = device
        self._pruned = 0.0
        self._hidden = torch.empty(0)  # random states of the prompt

    def _prefill(
        self,
        rows: NDArray[np.int64],
        positions: NDArray[np.int64],
        blocks: Sequence[int],
        after_layer: AfterLayer,
    ) -> Iterator[torch.Tensor | None]:
        """A piece is a layer. Its time counts from its own begin, for others may have had a pass before it."""
        prompt, begin = self._prompt, self.cached_tokens
        dropped = len(prompt) - len(rows) - (0 if self._prefix is None else self._prefix.rows)
        self._pruned = dropped / prompt.video_tokens if prompt.video_tokens else 0.0
        seconds = self._model.prefill_s(len(rows) / len(prompt))
        random = np.random.default_rng(0).standard_normal((len(prompt), HIDDEN_SIZE), np.float32)
        self._hidden = hidden = torch.from_numpy(random).to(self._device)
        logits = self._logits([0])[0]
        after_layer(0, hidden[begin:])
        for layer in range(1, self._layers + 1):
            wait_until(time.perf_counter() + seconds / self._layers)
            after_layer(layer, hidden.roll(layer, 1)[begin:])
            yield logits if layer == self._layers else None

    def _block(self, index: int) -> tuple[None, int]:
        return None, 0

    def _queries_and_keys(
        self, layer: int, hidden: torch.Tensor, positions: NDArray[np.int64]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """One head, whose queries and keys are the layer's random input, so the attention is random."""
        return hidden[None], self._hidden.roll(layer - 1, 1)[None]

    def _extend(self, tokens: Sequence[int], row: int, position: int, after_layer: AfterLayer | None) -> torch.Tensor:
        return shared_pass([(self, tokens)], after_layer, time.perf_counter())[0]

    def _logits(self, positions: Sequence[int]) -> torch.Tensor:
        """The model's logits at answer positions: float32 ``(len(positions), vocab_size)``."""
        logits = torch.zeros(len(positions), self._vocab_size)
        for row, position in zip(logits, positions, strict=True):
            for rank, token in enumerate(self._others(position)):
                row[token] = LIKELY - rank
            row[self._token(position)] = SURE
        return logits.to(self._device)

    def _token(self, position: int) -> int:
        right = self._guesses is None or self._guesses.right(position)
        return self._text.token(position) if right else self._text.other(position)

    def _others(self, position: int) -> list[int]:
        """A draft's best other tokens at a position."""
        rates = self._model.hit_rates
        if self._guesses is None or not rates:
            return []
        others = [self._text.other(position, 1 + rank) for rank in range(len(rates))]
        if not self._guesses.right(position):
            quantile = self._guesses.quantile(position)
            rank = next((rank for rank, rate in enumerate(rates) if quantile < rate), None)
            if rank is not None:
                others[rank] = self._text.token(position)
        return others

    def _new_branch(self, capacity: int, room: int) -> Self:
        branch = type(self)(self._model, self._text, self._guesses, self._prompt, capacity, self._device, None)
        branch._pruned = self._pruned
        return branch

    def _take_rows(self, branch: Self, count: int) -> None:
        """Nothing to do: the session has only its length."""

    def _truncate(self, count: int) -> None:
        """Nothing to do: the session has only its length."""

    def _close(self) -> None:
        self._hidden = torch.empty(0)


def shared_pass(
    parts: Sequence[tuple[EmulatedSession, Sequence[int]]], after_layer: AfterLayer | None, started: float
) -> list[torch.Tensor]:
    """Take the time of a pass over the tokens of one or more sessions of a model; return the logits of each.
    ``started``: when the pass was asked for, a reading of ``time.perf_counter``.
    """
    first = parts[0][0]
    pruned = max(session._pruned for session, _ in parts)
    seconds = first._model.pass_s(sum(len(tokens) for _, tokens in parts), pruned)
    if after_layer is not None:
        after_layer(0, first._hidden)
    logits = [
        session._logits(range(session._length + 1, session._length + len(tokens) + 1)) for session, tokens in parts
    ]
    if after_layer is not None:
        for layer in range(1, first._layers):
            left_s = started + seconds * layer / first._layers - time.perf_counter()
            if left_s > SPIN_S:  # short layers share a sleep: only the end of the pass must be exact
                time.sleep(left_s)
            after_layer(layer, logits[0])
    wait_until(started + seconds)
    return logits


def wait_until(deadline_s: float) -> None:
    """Return as soon as ``time.perf_counter()`` reaches ``deadline_s``."""
    left_s = deadline_s - time.perf_counter()
    if left_s > SPIN_S:
        time.sleep(left_s - SPIN_S)
    while time.perf_counter() < deadline_s:
        # Lets other threads run, and returns within a microsecond; time.sleep(0) takes 0.07 ms.
        select.select((), (), (), 0)
