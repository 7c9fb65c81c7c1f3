"""The session that all plug-ins share: lengths, positions, checks, and the early-layer tap."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from pvlm_protocols.backend import BackendError, EarlyStates, PromptError, Session

from .early_states import EarlyTap
from .prefix import EarlyRows, Prefix
from .processing import PreparedPrompt
from .processing.prompt import Rows

AfterLayer = Callable[[int, torch.Tensor], None]
"""Called with a layer's number (0: the decoder's input) and its output, ``(tokens, hidden_size)``."""


Own = TypeVar("Own", bound="CachedSession")


@dataclass(frozen=True)
class _Run:
    """What a prefill has run: tokens, those of each block, and the early states of each block, if there are any."""

    rows: Rows
    blocks: Sequence[int]
    early: Sequence[EarlyRows]


class CachedSession(ABC):
    """One prompt in one model. A subclass computes: `_prefill`, `_extend`, `_truncate`, `_queries_and_keys`, `_close`.

    It sets ``_layer_features``, if the vision tower has any: ``(n, placeholders, hidden_size)``, to be added to the
    placeholders' rows in the output of the first n layers. On a kept prefix these are the placeholders after it.

    Row ``r`` of the cache holds the r-th *kept* token. Its position is that in the unpruned prompt; compact positions
    close the gaps that pruning leaves. In both cases answer token ``i`` is ``i + 1`` after the largest position of the
    prompt, on all axes.

    Args:
        prompt: the prepared prompt.
        capacity: answer tokens to make room for.
        vocab_size: width of a logits row.
        layers: number of decoder layers.
        prefix: a kept beginning of the prompt.
    """

    keeps = False
    """`prefixes` will be asked for."""

    def __init__(
        self, prompt: PreparedPrompt, capacity: int, vocab_size: int, layers: int, prefix: Prefix | None = None
    ) -> None:
        self._prompt = prompt
        self._prefix = prefix
        self._completed: _Run | None = None
        self._capacity = capacity
        self._vocab_size = vocab_size
        self._layers = layers
        self._length = 0
        self._prompt_rows = 0  # 0 until the prefill is done
        self._first_position = 0  # of the answer; known when the prefill begins
        self._layer_features: torch.Tensor | None = None
        self._closed = False

    @property
    def video_tokens(self) -> int:
        """m: prunable video tokens of the prompt."""
        return self._prompt.video_tokens

    @property
    def prompt_tokens(self) -> int:
        """Tokens of the unpruned prompt."""
        return len(self._prompt)

    @property
    def length(self) -> int:
        """Answer tokens in the cache."""
        return self._length

    @property
    def cached_tokens(self) -> int:
        """Tokens of the unpruned prompt that a kept prefix covers."""
        return 0 if self._prefix is None else self._prefix.tokens

    @property
    def cached_video_tokens(self) -> int:
        """Those of them that are prunable video tokens."""
        return int((self._prompt.video < self.cached_tokens).sum())

    @property
    def prompt_rows(self) -> int:
        """Rows of the prompt in the cache; 0 before the prefill."""
        return self._prompt_rows

    def prefixes(self) -> Sequence[Prefix]:
        """Return the beginnings of the prompt that may be kept; see `pvlm_protocols.prefixes.PrefixSession`.

        Raises BackendError unless it is called once, after the prefill, and the session is one of `open_on`.
        """
        if (run := self._completed) is None:
            raise BackendError("only a session of `open_on` that was just prefilled has prefixes to keep")
        self._completed = None
        parent = self._prefix
        found = [] if parent is None else parent.chain
        keys = self._prompt.keys()
        kept = np.split(run.rows, np.cumsum(run.blocks)[:-1])
        for index, end in enumerate(self._blocks[:-1]):
            if (key := keys.get(end)) is None:
                break
            early = run.early[len(found)] if run.early else None
            content, size = self._block(index)
            parent = Prefix(key, end, kept[index], early, content, size, parent)
            found.append(parent)
        return found

    def prefill(
        self,
        keep: torch.Tensor | None = None,
        *,
        compact_positions: bool = False,
        early_layer: int | None = None,
        on_early_layer: Callable[[EarlyStates], None] | None = None,
        early_attention: bool = False,
        on_progress: Callable[[], None] | None = None,
    ) -> torch.Tensor:
        """Run the prompt at once, and return the last position's logits, float32 ``(vocab_size,)``.

        Arguments and errors are those of `prefill_steps`.
        """
        *_, logits = self.prefill_steps(
            keep,
            compact_positions=compact_positions,
            early_layer=early_layer,
            on_early_layer=on_early_layer,
            early_attention=early_attention,
            on_progress=on_progress,
        )
        assert logits is not None  # they come last
        return logits

    def prefill_steps(
        self,
        keep: torch.Tensor | None = None,
        *,
        compact_positions: bool = False,
        early_layer: int | None = None,
        on_early_layer: Callable[[EarlyStates], None] | None = None,
        early_attention: bool = False,
        on_progress: Callable[[], None] | None = None,
    ) -> Iterator[torch.Tensor | None]:
        """Run the prompt in pieces: yield None after each, and at last the last position's logits, ``(vocab_size,)``.

        An exception of a callback ends the prefill and propagates; the prefill may then be started again, and so it
        may where the caller leaves the iterator.

        Args:
            keep: bool ``(m,)``, the video tokens to keep; None keeps all. Those of a kept prefix stay as they are.
            compact_positions: number the kept tokens without gaps.
            early_layer: 1 to the number of layers; required with ``on_early_layer``.
            on_early_layer: called between two layers; excludes ``keep``.
            early_attention: the early states include the attention.
            on_progress: called before the first layer and after each.

        Raises:
            ValueError: an argument is out of range.
            BackendError: the session is closed or already prefilled.
        """
        self._check_open()
        if self._prompt_rows:
            raise BackendError("this session's prompt is in its cache already; open another session")
        if on_early_layer is not None and (early_layer is None or not 1 <= early_layer <= self._layers):
            raise ValueError(f"early_layer is {early_layer}; it must be between 1 and {self._layers}")
        if on_early_layer is not None and keep is not None:
            raise ValueError("early states are of the whole prompt: give either keep or on_early_layer")

        kept = self._kept(keep)
        pruned = len(kept) < len(self._prompt)
        done = 0 if self._prefix is None else self._prefix.rows
        rows = kept[done:]
        tap: EarlyTap | None = None
        deep = None
        if self._layer_features is not None:
            deep = _DeepFeatures(self._layer_features, *self.placeholders_in(rows))

        def after_layer(layer: int, hidden: torch.Tensor) -> None:
            if deep is not None:
                deep.add_to(layer, hidden)
            if tap is not None:
                tap(layer, hidden)
            if on_progress is not None:
                on_progress()

        positions, self._first_position = self._prompt.positions[:, kept], self._prompt.next_position
        if pruned and compact_positions:
            positions, self._first_position = self._prompt.compacted(kept)
        if on_early_layer is not None and early_layer is not None:
            asked = positions[:, self._prompt.question]
            attending = partial(self._queries_and_keys, early_layer, positions=asked) if early_attention else None
            tap = EarlyTap(self._prompt, self._prefix, early_layer, on_early_layer, attending)
        blocks = np.diff(np.searchsorted(kept, [self.cached_tokens, *self._blocks])).tolist()
        for logits in self._prefill(rows, positions[:, done:], blocks, after_layer):
            if logits is not None:
                if logits.is_cuda:  # launches return early, and the time of a prefill includes its end
                    torch.cuda.current_stream(logits.device).synchronize()
                self._prompt_rows = len(kept)
                self._layer_features = None
                if self.keeps:
                    self._completed = _Run(rows, blocks, [] if tap is None else tap.blocks)
            yield logits

    @property
    def _blocks(self) -> list[int]:
        """Where the blocks end that the prefill runs."""
        return [end for end in self._prompt.blocks if end > self.cached_tokens]

    def _kept(self, keep: torch.Tensor | None) -> Rows:
        """The prompt's tokens that have a row after the prefill."""
        kept = np.arange(len(self._prompt)) if keep is None else self._prompt.kept_rows(keep)
        if self._prefix is None:
            return kept
        return np.concatenate([*(one.kept for one in self._prefix.chain), kept[kept >= self._prefix.tokens]])

    def placeholders_in(self, rows: Rows) -> tuple[Rows, Rows]:
        """Return where placeholders are among tokens after the kept prefix, and which of those after it these are."""
        found, places = self._prompt.placeholders_in(rows)
        return found, places - int((self._prompt.placeholders < self.cached_tokens).sum())

    def extend(self, tokens: Sequence[int], *, on_progress: Callable[[], None] | None = None) -> torch.Tensor:
        """Append n >= 1 answer tokens; row i of float32 ``(n, vocab_size)`` predicts the token after ``tokens[i]``.

        An exception of ``on_progress`` ends the pass and propagates; the tokens are then not appended.

        Raises:
            PromptError: the cache is full.
            ValueError: no tokens, or an id outside the vocabulary.
            BackendError: the session is closed or not prefilled.
        """
        self._check_extension(tokens)
        row, position = self._prompt_rows + self._length, self._first_position + self._length
        logits = self._extend(tokens, row, position, progress(on_progress))
        self._length += len(tokens)
        return logits

    def truncate(self, length: int) -> None:
        """Keep the first ``length`` answer tokens. Raises ValueError unless ``0 <= length <= self.length``."""
        self._check_open()
        if not 0 <= length <= self._length:
            raise ValueError(f"cannot truncate to {length} answer tokens: the cache holds {self._length}")
        if length < self._length:
            self._truncate(self._length - length)
            self._length = length

    def close(self) -> None:
        """Free the cache. May be called twice."""
        if not self._closed:
            self._closed = True
            self._layer_features = self._prefix = self._completed = None
            self._close()

    def _check_open(self) -> None:
        if self._closed:
            raise BackendError("this session is closed")

    def _check_extension(self, tokens: Sequence[int], further: int = 0) -> None:
        """Raise as `extend` does unless ``tokens``, and then ``further`` more, can be appended."""
        self._check_open()
        if not self._prompt_rows:
            raise BackendError("this session's cache is empty: prefill comes before extend")
        count = len(tokens)
        if not count or min(tokens) < 0 or max(tokens) >= self._vocab_size:
            raise ValueError(f"tokens must be one or more ids below {self._vocab_size}, not {list(tokens)}")
        count += further
        if self._length + count > self._capacity:
            raise PromptError(
                f"the cache is full: {self._length} answer tokens and {count} more exceed the {self._capacity} reserved"
            )

    @abstractmethod
    def _prefill(
        self, rows: Rows, positions: NDArray[np.int64], blocks: Sequence[int], after_layer: AfterLayer
    ) -> Iterator[torch.Tensor | None]:
        """Run the prompt's tokens ``rows`` at ``positions``, ``(axes, n)``, into a cache after the kept prefix.

        ``blocks``: numbers of tokens that are run separately, n in all; see `PreparedPrompt.blocks`. Yields None after
        each piece, and at last the logits ``(vocab_size,)``.
        """

    @abstractmethod
    def _block(self, index: int) -> tuple[Any, int]:
        """Return what is kept of a block of the prefill that has just run, and its size in bytes."""

    @abstractmethod
    def _queries_and_keys(
        self, layer: int, hidden: torch.Tensor, positions: NDArray[np.int64]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return some tokens' queries and the prompt's keys of a layer that has just run in the prefill.

        Args:
            layer: its number, from 1.
            hidden: ``(n, hidden_size)``, the tokens' input to the layer.
            positions: ``(axes, n)``, the tokens' positions.

        Returns:
            ``(heads, n, head_dim)`` and ``(kv_heads, P, head_dim)``, both rotated.
        """

    @abstractmethod
    def _extend(self, tokens: Sequence[int], row: int, position: int, after_layer: AfterLayer | None) -> torch.Tensor:
        """Run ``tokens`` into the cache from ``row`` on, at consecutive positions, the same on all axes.

        An exception of ``after_layer`` leaves the cache as it was.
        """

    @abstractmethod
    def _truncate(self, count: int) -> None:
        """Drop the last ``count`` rows."""

    @abstractmethod
    def _close(self) -> None:
        """Drop the cache."""


def progress(on_progress: Callable[[], None] | None) -> AfterLayer | None:
    """Turn ``on_progress`` into the function that a pass calls between its layers."""
    return None if on_progress is None else lambda layer, hidden: on_progress()


def append_together(
    parts: Sequence[tuple[Session, Sequence[int]]],
    kind: type[Own],
    run: Callable[[list[tuple[Own, Sequence[int]]]], list[torch.Tensor]],
) -> list[torch.Tensor]:
    """Append tokens to several sessions, to all or to none, and return the logits of each.

    Args:
        parts: sessions, and the tokens for each.
        kind: the backend's own sessions.
        run: the pass over the tokens of all.

    Raises:
        ValueError: a session is of another backend; or as `CachedSession.extend`, like the other errors.
    """
    ours = [(session, tokens) for session, tokens in parts if isinstance(session, kind)]
    if len(ours) < len(parts):
        raise ValueError("a pass is shared by sessions of one backend")
    for session, tokens in ours:
        session._check_extension(tokens)
    logits = run(ours)
    for session, tokens in ours:
        session._length += len(tokens)
    return logits


class _DeepFeatures:
    """Features of the vision tower for the first layers (DeepStack), those ``places`` that the prefill runs as tokens
    ``rows``.
    """

    def __init__(self, features: torch.Tensor, rows: Rows, places: Rows) -> None:
        self._rows = torch.from_numpy(rows)
        whole = len(places) == features.shape[1]
        self._features = features if whole else features[:, torch.from_numpy(places).to(features.device)]

    def add_to(self, layer: int, hidden: torch.Tensor) -> None:
        """Add a layer's features to its output, in place; nothing for later layers and the decoder's input."""
        if 1 <= layer <= len(self._features):
            rows = self._rows.to(hidden.device)
            hidden.index_add_(0, rows, self._features[layer - 1].to(hidden.device, hidden.dtype))
