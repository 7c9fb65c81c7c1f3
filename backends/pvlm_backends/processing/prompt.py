"""A prompt as a model takes it, and how a cache's rows map to it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch

Span = tuple[int, int]
"""First index, and the index behind the last."""


@dataclass(frozen=True)
class PreparedPrompt:
    """Ids, pixels and positions of one prompt.

    ``ids``: int64 ``(P,)``, one id for each token of the unpruned prompt; those of ``placeholders`` are replaced by the
    vision tower's output. ``pixels``: float32, normalised, as the family's vision tower takes them, or None for a
    question about no video. ``video``: the prunable tokens among the placeholders. ``question``: the tokens of the
    question's own text. ``positions``: int64 ``(axes, P)``: one axis, or time, height and width.
    """

    ids: NDArray[np.int64]
    pixels: NDArray[np.float32] | None
    placeholders: Span
    video: Span
    question: Span
    positions: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def video_tokens(self) -> int:
        """m, the number of prunable tokens."""
        return self.video[1] - self.video[0]

    @property
    def next_position(self) -> int:
        """Where an answer to the unpruned prompt begins, on all axes."""
        return int(self.positions.max()) + 1

    def compacted(self, kept: NDArray[np.int64]) -> tuple[NDArray[np.int64], int]:
        """Positions ``(axes, kept)`` without the gaps that pruning leaves, and where the answer begins.

        A position that no kept token has on any axis, but a dropped one had, is closed up, alike on all axes: so text
        stays at one position on all of them. With one axis this numbers the kept tokens from 0.
        """
        vacated = np.setdiff1d(self.positions, self.positions[:, kept])
        moved = self.positions[:, kept] - np.searchsorted(vacated, self.positions[:, kept])
        return moved, self.next_position - len(vacated)

    @property
    def frames(self) -> int:
        """Moments of the video, with equally many of the prunable tokens each; 1 where there are no pixels."""
        return 1 if self.pixels is None else len(self.pixels)

    def kept_rows(self, keep: torch.Tensor) -> NDArray[np.int64]:
        """Indices of the prompt's tokens that stay when only the video tokens of ``keep``, bool ``(m,)``, do.

        Raises:
            ValueError: ``keep`` has another shape or dtype.
        """
        mask = keep.detach().cpu().numpy()
        if mask.dtype != np.bool_ or mask.shape != (self.video_tokens,):
            raise ValueError(
                f"keep must be bool of shape ({self.video_tokens},), one for each video token, "
                f"not {mask.dtype} of shape {mask.shape}"
            )
        start, stop = self.video
        return np.concatenate([np.arange(start), start + np.flatnonzero(mask), np.arange(stop, len(self))])
