"""One prompt in the raw-torch model."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Self, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from ..branches import BranchingSession
from ..prefix import Prefix
from ..processing import PreparedPrompt
from ..session import AfterLayer, progress
from .cache import KeyValueCache, Part, Rows
from .decoder import Decoder
from .draft import CapturedDrafting
from .graphs import CapturedPasses

_Result = TypeVar("_Result")


class TorchSession(BranchingSession):
    """A cache of its own in a shared decoder.

    Args:
        decoder: the model.
        prompt: the prepared prompt.
        video: ``(1 + n, placeholders, hidden_size)``, the vision tower's output, or None without a video. On a kept
            prefix it is that of the placeholders after it.
        capacity: answer tokens to make room for.
        prefix: a kept beginning of the prompt.
    """

    def __init__(
        self,
        decoder: Decoder,
        prompt: PreparedPrompt,
        video: torch.Tensor | None,
        capacity: int,
        prefix: Prefix | None = None,
    ) -> None:
        super().__init__(prompt, capacity, decoder.config.vocab_size, decoder.config.layers, prefix)
        self._decoder = decoder
        self._video = None if video is None else video[0]
        if video is not None and len(video) > 1:
            self._layer_features = video[1:]
        self._segments: list[Rows] = []  # of the kept prefix, and of each block; the last one has the answer too
        self._rotations: torch.Tensor | None = None
        self._captured: CapturedPasses | None = None
        self._drafting: CapturedDrafting | None = None
        # A captured pass needs a kernel that float32 does not have, and a graph covers one device.
        alone = decoder.devices == {decoder.device}
        self._capturing = alone and decoder.device.type == "cuda" and decoder.dtype != torch.float32

    @torch.inference_mode()
    def _prefill(
        self,
        rows: NDArray[np.int64],
        positions: NDArray[np.int64],
        blocks: Sequence[int],
        after_layer: AfterLayer,
    ) -> Iterator[torch.Tensor | None]:
        decoder = self._decoder
        hidden = decoder.embed(torch.from_numpy(self._prompt.ids[rows]).to(decoder.device))
        if self._video is not None:
            found, places = (torch.from_numpy(each).to(decoder.device) for each in self.placeholders_in(rows))
            hidden[found] = self._video[places]
        axes = len(positions)
        # Made here, because the number of rows depends on pruning.
        shared = [] if self._prefix is None else [prefix.content for prefix in self._prefix.chain]
        rooms = [*blocks[:-1], blocks[-1] + self._capacity]
        caches = [KeyValueCache(decoder.config, room, decoder.dtype, decoder.layer_devices) for room in rooms]
        own = [Rows(cache, count) for cache, count in zip(caches, blocks, strict=True)]
        self._segments = [*shared, *own]
        rotation = decoder.rotations(torch.from_numpy(positions).to(decoder.device))
        answer = torch.arange(self._capacity, device=decoder.device) + self._first_position
        self._rotations = decoder.rotations(answer.expand(axes, -1))
        hidden = yield from decoder.prefill(hidden, rotation, shared, own, after_layer)
        self._video = None
        yield decoder.logits(hidden[-1:])[0]

    def _queries_and_keys(
        self, layer: int, hidden: torch.Tensor, positions: NDArray[np.int64]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        decoder = self._decoder
        rotation = decoder.rotations(torch.from_numpy(positions).to(decoder.device))
        keys = torch.cat([rows.cache.filled(rows.count)[2 * (layer - 1)] for rows in self._segments], dim=2)
        return decoder.queries(layer, hidden.to(keys.device), rotation.to(keys.device)), keys[0]

    def _block(self, index: int) -> tuple[Rows, int]:
        kept = 0 if self._prefix is None else len(self._prefix.chain)
        rows = self._segments[kept + index]
        return rows, rows.cache.nbytes

    def _extend(self, tokens: Sequence[int], row: int, position: int, after_layer: AfterLayer | None) -> torch.Tensor:
        if self._drafting is not None:
            self._drafting.forget()
        captured = self._captured_call(lambda passes: passes.extend(tokens, self._length))
        return self._run(self._ids(tokens), after_layer) if captured is None else captured

    def draft(
        self,
        tokens: Sequence[int],
        count: int,
        *,
        vocab_limit: int,
        on_progress: Callable[[], None] | None = None,
    ) -> Iterator[int]:
        """See `pvlm_protocols.backend.GreedyDrafting`. Captured passes call no ``on_progress``: see `graphs`.

        Raises as `extend` does, and ValueError for less than one token.
        """
        if count < 1:
            raise ValueError(f"cannot draft {count} tokens: at least 1 is needed")
        self._check_extension(tokens, count - 1)
        drafted = self._captured_call(lambda passes: self._draft_captured(passes, tokens, count, vocab_limit))
        if drafted is None:
            drafted = self._draft(self._ids(tokens), count, vocab_limit, progress(on_progress))
        appended = len(tokens)
        for token in drafted:
            self._length += appended
            appended = 1
            yield token

    def _draft_captured(
        self, passes: CapturedPasses, tokens: Sequence[int], count: int, vocab_limit: int
    ) -> Iterator[int] | None:
        if self._drafting is None or self._drafting.vocab_limit != vocab_limit:
            self._drafting = CapturedDrafting(passes, vocab_limit)
        return self._drafting.draft(tokens, self._length, count)

    def _draft(self, ids: torch.Tensor, count: int, vocab_limit: int, after_layer: AfterLayer | None) -> Iterator[int]:
        """The same without a graph. It reads `length`, which grows between two tokens."""
        for _ in range(count):
            ids = self._run(ids, after_layer)[-1:, :vocab_limit].argmax(-1)
            yield int(ids)

    def _ids(self, tokens: Sequence[int]) -> torch.Tensor:
        return torch.tensor(tokens, device=self._decoder.device)

    @torch.inference_mode()
    def _run(self, ids: torch.Tensor, after_layer: AfterLayer | None) -> torch.Tensor:
        rotation, part = self._part(len(ids))
        return self._decoder.extend(ids, rotation, [part], after_layer)

    def _part(self, count: int) -> tuple[torch.Tensor, Part]:
        """The rotations of the next ``count`` answer tokens, and where they go."""
        assert self._rotations is not None  # the prefill made it
        *shared, own = self._segments
        rows = Rows(own.cache, own.count + self._length - self._shared)
        return self._rotations[self._length : self._length + count], Part((*shared, rows), count)

    def _new_branch(self, capacity: int, room: int) -> Self:
        """Its last segment is its own; the one before that is the trunk's last, as far as they share it."""
        *shared, own = self._segments
        cache = KeyValueCache(self._decoder.config, room, self._decoder.dtype, self._decoder.layer_devices)
        branch = type(self)(self._decoder, self._prompt, None, capacity)
        branch._segments = [*shared, Rows(own.cache, own.count + capacity - room), Rows(cache, 0)]
        branch._rotations = self._rotations
        branch._capturing = False
        return branch

    @torch.inference_mode()
    def _take_rows(self, branch: Self, count: int) -> None:
        if self._drafting is not None:
            self._drafting.forget()
        own, taken = self._segments[-1], branch._segments[-1].cache
        places = own.cache.places(own.count + self._length, count)
        for place, rows in zip(places, taken.places(0, count), strict=True):
            place.copy_(rows)

    @torch.inference_mode()
    def _captured_call(self, call: Callable[[CapturedPasses], _Result | None]) -> _Result | None:
        """Call a captured pass; None if nothing is captured, or no captured pass fits.

        A captured pass is a single call that cannot be interrupted.
        """
        if not self._capturing:
            return None
        assert self._rotations is not None
        try:
            if self._captured is None:
                self._captured = CapturedPasses(self._decoder, self._segments, self._rotations, self._capacity)
            return call(self._captured)
        except RuntimeError as error:
            warnings.warn(f"passes are not captured as CUDA graphs: {error}", RuntimeWarning, stacklevel=2)
            self._capturing = False
            return None

    def _truncate(self, count: int) -> None:
        """Nothing to do: rows after the length are overwritten before they are read."""

    def _close(self) -> None:
        self._rotations = self._video = self._captured = self._drafting = None
        self._segments = []


@torch.inference_mode()
def shared_pass(
    decoder: Decoder, parts: Sequence[tuple[TorchSession, Sequence[int]]], after_layer: AfterLayer | None
) -> list[torch.Tensor]:
    """Run tokens of several sessions of a decoder in one pass; return the logits of each session."""
    pieces = []
    for session, tokens in parts:
        if session._drafting is not None:
            session._drafting.forget()
        pieces.append(session._part(len(tokens)))
    ids = torch.tensor([token for _, tokens in parts for token in tokens], device=decoder.device)
    rotation = torch.cat([rotation for rotation, _ in pieces])
    logits = decoder.extend(ids, rotation, [part for _, part in pieces], after_layer)
    return list(torch.split(logits, [len(tokens) for _, tokens in parts]))
