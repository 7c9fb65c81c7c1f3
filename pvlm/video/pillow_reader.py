"""A video reader that uses Pillow: animated WebP, PNG and AVIF, and still pictures as videos of one frame."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageSequence

from pvlm.errors import VideoError
from pvlm.video.arrays import rgb_of_image
from pvlm.video.containers import recognize

_ANIMATED = frozenset(("AVIF", "PNG", "WebP"))


class PillowReader:
    """A `VideoReader` that uses Pillow. Raises VideoError if it cannot open the file."""

    def __init__(self, path: str) -> None:
        self._path = path
        kind = recognize(path).name
        try:
            self._image = Image.open(path, formats=["AVIF" if kind == "HEIF" else kind.upper()])
            frames = ImageSequence.Iterator(self._image) if kind in _ANIMATED else [self._image]
            self._ends_s = np.cumsum([self._duration_s(image) for image in frames])
        except Image.DecompressionBombError as error:
            raise VideoError(path, f"the picture is too large: {error}") from error
        except (OSError, SyntaxError, ValueError, EOFError) as error:
            raise VideoError(path, f"it looks like a {kind} picture, but cannot be read: {error}") from error

    @staticmethod
    def _duration_s(image: Image.Image) -> float:
        image.load()  # the duration of a WebP frame is known after it was decoded
        return float(image.info.get("duration", 0)) / 1000

    @property
    def num_frames(self) -> int:
        return len(self._ends_s)

    @property
    def frame_size(self) -> tuple[int, int]:
        """Height and width, before the frames are turned."""
        width, height = self._image.size
        return height, width

    @property
    def fps(self) -> float | None:
        """None for a still picture."""
        return self.num_frames / float(self._ends_s[-1]) if self.num_frames > 1 and self._ends_s[-1] > 0 else None

    @property
    def timestamps(self) -> Sequence[float] | None:
        return None if self.fps is None else [0.0, *self._ends_s[:-1].tolist()]

    def read(self, indices: Sequence[int]) -> np.ndarray:
        """As `VideoReader.read`. Raises VideoError for a picture that is damaged."""
        frames = []
        for index in indices:
            try:
                self._image.seek(index)
                frames.append(rgb_of_image(self._image, self._path, f"frame {index}"))
            except (OSError, SyntaxError, ValueError, EOFError) as error:
                raise VideoError(self._path, f"it is damaged: frame {index} cannot be decoded ({error})") from error
        return np.stack(frames)

    def finish(self) -> None:
        """Nothing is left to check."""
