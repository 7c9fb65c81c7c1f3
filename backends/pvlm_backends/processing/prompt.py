"""A prompt as a model takes it, and the map from a cache's rows to its tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pvlm_protocols.backend import FramesMissing, PromptError
from pvlm_protocols.prompt import VisualKind

if TYPE_CHECKING:
    import torch

Rows = NDArray[np.int64]
"""Indices of tokens; ascending, if nothing else is said."""


MAX_BLOCKS = 8
"""Blocks of a prompt. In a longer conversation the last block has several turns."""


@dataclass(frozen=True)
class Pixels:
    """Of a video or an image, as the family's vision tower takes them."""

    kind: VisualKind
    make: Callable[[], NDArray[np.float32]]
    """Makes ``values``, which takes time and memory."""
    size: tuple[int, int] = (0, 0)
    """Height and width of the source."""
    row: int = 0
    """The first of its tokens."""
    digest: bytes = b""
    """Of its content; empty if it is unknown."""
    missing: bool = False
    """There is nothing to make ``values`` of."""

    @property
    def values(self) -> NDArray[np.float32]:
        """Normalised. For a video, the first dimension counts moments. Raises FramesMissing."""
        if self.missing:
            raise FramesMissing(f"the pixels of a {self.kind} are missing, and no kept prefix covers it")
        return self.make()


@dataclass(frozen=True)
class PreparedPrompt:
    """Ids, pixels and positions of one prompt of P tokens."""

    ids: NDArray[np.int64]
    """``(P,)``, one id for each token of the unpruned prompt."""
    visuals: tuple[Pixels, ...]
    """Those of the videos and images, in the order of the tokens that they become."""
    placeholders: Rows
    """The tokens that the vision tower's output replaces, in its order. Text may lie between them."""
    video: Rows
    """The prunable ones of the placeholders: m in all, one moment after another, one video or image after another, in
    the order of the prompt's turns. A template may put the tokens in another order."""
    runs: tuple[tuple[int, int], ...]
    """For each video and image, in the same order: its moments, and the prunable tokens of each moment."""
    question: Rows
    """The tokens of the question's own text: that of the last turn."""
    positions: NDArray[np.int64]
    """``(axes, P)``: one axis, or time, row and column."""
    begins: Rows
    """The first token of the text of each user's turn."""

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def video_tokens(self) -> int:
        """m, the number of prunable tokens."""
        return len(self.video)

    @property
    def next_position(self) -> int:
        """The first position of an answer to the unpruned prompt, on all axes."""
        return int(self.positions.max()) + 1

    @property
    def blocks(self) -> tuple[int, ...]:
        """Where the blocks end that a prefill runs separately, so that none depends on what follows it."""
        ends = [int(row) for row in self.begins if row > 0]
        return *ends[: MAX_BLOCKS - 1], len(self)

    def keys(self) -> dict[int, bytes]:
        """Return keys of the beginnings that end with a block, by their number of tokens, ascending.

        Equal keys mean equal token ids and equal content of videos and images. Without the last block; and without
        beginnings in which a video or an image has no digest.
        """
        found: dict[int, bytes] = {}
        for tokens in self.blocks[:-1]:
            visuals = [visual for visual in self.visuals if visual.row < tokens]
            if not all(visual.digest for visual in visuals):
                break
            whole = blake2b(self.ids[:tokens].tobytes(), digest_size=16)
            for visual in visuals:
                whole.update(visual.row.to_bytes(8) + visual.digest)
            found[tokens] = whole.digest()
        return found

    def check_positions(self, capacity: int, max_positions: int) -> None:
        """Raise PromptError if the prompt and ``capacity`` answer tokens exceed the model's positions."""
        # Positions with three axes count time: a long video of few tokens may reach further than its tokens do.
        taken = max(len(self), self.next_position)
        if taken + capacity > max_positions:
            video = f" ({self.video_tokens} of its {len(self)} tokens are the video's)" if self.video_tokens else ""
            raise PromptError(
                f"the prompt takes {taken} positions{video} and {capacity} are reserved for the answer: "
                f"{taken + capacity} exceed the model's {max_positions}; use fewer frames or lower max_tokens"
            )

    def compacted(self, kept: NDArray[np.int64]) -> tuple[NDArray[np.int64], int]:
        """Return positions ``(axes, kept)`` without the gaps that pruning leaves, and the answer's first position.

        A gap is a position that only dropped tokens have. All axes close the same gaps, so the axes of a text token
        stay equal. With one axis this numbers the kept tokens from 0.
        """
        vacated = np.setdiff1d(self.positions, self.positions[:, kept])
        moved = self.positions[:, kept] - np.searchsorted(vacated, self.positions[:, kept])
        return moved, self.next_position - len(vacated)

    def placeholders_in(self, tokens: Rows) -> tuple[Rows, Rows]:
        """Return where the placeholders are among some of the tokens, and which of them these are."""
        rows = np.flatnonzero(np.isin(tokens, self.placeholders))
        return rows, np.searchsorted(self.placeholders, tokens[rows])

    @property
    def frames(self) -> int:
        """Moments of all videos and images, each with the same number of prunable tokens; 1 if the numbers differ."""
        alike = len({tokens for _, tokens in self.runs}) == 1
        return sum(moments for moments, _ in self.runs) if alike else 1

    def kept_rows(self, keep: torch.Tensor) -> NDArray[np.int64]:
        """Return the indices of the prompt's tokens that stay after pruning.

        Args:
            keep: bool ``(m,)``, the video tokens to keep.

        Raises:
            ValueError: ``keep`` has another shape or dtype.
        """
        mask = keep.detach().cpu().numpy()
        if mask.dtype != np.bool_ or mask.shape != (self.video_tokens,):
            raise ValueError(
                f"keep must be bool of shape ({self.video_tokens},), one for each video token, "
                f"not {mask.dtype} of shape {mask.shape}"
            )
        stays = np.ones(len(self), np.bool_)
        stays[self.video] = mask
        return np.flatnonzero(stays)
