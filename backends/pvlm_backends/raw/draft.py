"""A draft window without the host between its tokens.

A step is one captured pass. It reads its token on the device, and writes the id of the largest logit there for the next
step. The host launches steps, and reads each token when it has arrived.

A short step (less than `AHEAD_BELOW_S`) is launched before the host has read its token. This hides about 0.1 ms of the
host's work between two tokens: the read, the actor's loop with its mailbox, and the launch. The price is one useless
step after each rejection, which must end before the draft continues. A draft writes some ten to twenty tokens between
two rejections. So launching ahead pays for steps up to ten or twenty times as long as the hidden work. One launch for a
whole window would hide no more, and would waste half of the window.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from .graphs import CapturedPasses

AHEAD_BELOW_S = 0.002
"""An estimate that was not measured on a GPU; see the module's docstring."""


class CapturedDrafting:
    """Greedy tokens of one session.

    Args:
        passes: of the session.
        vocab_limit: ids at or above it are never drafted.
    """

    def __init__(self, passes: CapturedPasses, vocab_limit: int) -> None:
        self._passes = passes
        self.vocab_limit = vocab_limit
        # The answer row of the next token, and that token. Warming up writes to the last row, which is unused.
        self._next = torch.tensor([passes.capacity - 1, 0], device=passes.device)
        self._step: Callable[[], Tensor] | None = None
        self._step_s = float("inf")
        self._fed: tuple[int, int] | None = None
        """Row and token of a step that was launched ahead and is not read yet."""

    def forget(self) -> None:
        """Drop the step that was launched ahead, because another pass is about to write rows."""
        self._fed = None

    def draft(self, tokens: Sequence[int], length: int, count: int) -> Iterator[int] | None:
        """Draft ``count`` tokens after ``tokens``; None if no captured pass takes so many tokens or rows.

        ``length``: answer rows before ``tokens``; the cache has room for ``count`` - 1 more after them.
        """
        if count > 1 and self._step is None:
            self._step = self._passes.capture(self._run_step)
        row = length + len(tokens)
        if self._fed != (length, *tokens):
            self._fed = None
            logits = self._passes.extend(tokens, length)
            if logits is None:
                return None
            self._next[0] = row
            self._next[1] = logits[-1, : self.vocab_limit].argmax()
        return self._tokens(row, count)

    def _tokens(self, row: int, count: int) -> Iterator[int]:
        """``row``: the answer row of the token that is ready."""
        began_s = None
        for last in (False,) * (count - 1) + (True,):
            read = _fetch(self._next[1])
            ahead = not last and self._step_s < AHEAD_BELOW_S
            if ahead:
                self._launch()
            token = read()
            if began_s is not None:  # the first steps of a graph may take longer than those that follow
                self._step_s = min(self._step_s, time.perf_counter() - began_s)
            self._fed = (row, token) if ahead else None
            yield token
            self._fed, row, began_s = None, row + 1, None
            if not ahead and not last:
                began_s = time.perf_counter()
                self._launch()

    def _launch(self) -> None:
        assert self._step is not None  # captured for every draft of more than one token
        self._step()

    @torch.inference_mode()
    def _run_step(self) -> Tensor:
        choice = self._passes.logits(self._next[1:], self._next[:1])[:, : self.vocab_limit].argmax(-1)
        self._next[1:].copy_(choice)
        # Warming up uses the last row, and no row follows it.
        self._next[:1].add_(1).clamp_(max=self._passes.capacity - 1)
        return self._next


def _fetch(number: Tensor) -> Callable[[], int]:
    """Start copying a number to the host, after all launched work; the returned function waits for it."""
    if not number.is_cuda:
        value = int(number)
        return lambda: value
    with torch.cuda.device(number.device):
        place = torch.empty((), dtype=number.dtype, pin_memory=True)
        place.copy_(number, non_blocking=True)
        arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
        arrived.record()

    def read() -> int:
        arrived.synchronize()
        return int(place)

    return read
