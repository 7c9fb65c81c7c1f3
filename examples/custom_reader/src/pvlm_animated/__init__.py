"""A video reader for pvlm that reads animated images with Pillow. See the README."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import numpy as np
from PIL import Image, UnidentifiedImageError

from pvlm import VideoError

DEFAULT_MS = 100
"""How long a frame is shown that says nothing about it, as browsers do."""


class AnimatedReader:
    """One animated GIF, WebP or PNG. pvlm makes it in a process that exists for this one file."""

    def __init__(self, path: str) -> None:
        """Raises VideoError for anything that Pillow does not know."""
        self._path = path
        try:
            self._image = Image.open(path)
        except UnidentifiedImageError as error:
            raise VideoError(path, "it is no image that Pillow knows; use another video_reader") from error
        self.num_frames = getattr(self._image, "n_frames", 1)
        shown_ms = []
        for index in range(self.num_frames):
            self._image.seek(index)
            self._image.load()  # the duration of a WebP frame is known after it is decoded
            shown_ms.append(self._image.info.get("duration") or DEFAULT_MS)
        self.timestamps: list[float] = [start / 1000 for start in accumulate(shown_ms[:-1], initial=0)]
        self.fps = 1000 * self.num_frames / sum(shown_ms)

    def read(self, indices: Sequence[int]) -> np.ndarray:
        """uint8 ``(len(indices), H, W, 3)``; called several times, with ascending indices."""
        frames = []
        for index in indices:
            self._image.seek(index)
            frames.append(np.asarray(self._image.convert("RGB")))
        return np.stack(frames)

    def finish(self) -> None:
        """Raise VideoError here if the frames may be the wrong ones. Pillow raises at once."""
        self._image.close()
