"""The reader "auto": PyAV for videos, Pillow for pictures and animated pictures, by what the file is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from pvlm.video.containers import recognize

if TYPE_CHECKING:
    from pvlm.video.pillow_reader import PillowReader
    from pvlm.video.pyav_reader import PyAVReader


class AutoReader:
    """A `VideoReader` that leaves the work to the right one. Raises VideoError, as each reader does."""

    def __init__(self, path: str) -> None:
        self._reader = _pillow_reader(path) if recognize(path).is_picture else _pyav_reader(path)

    @property
    def num_frames(self) -> int:
        return self._reader.num_frames

    @property
    def fps(self) -> float | None:
        return self._reader.fps

    @property
    def frame_size(self) -> tuple[int, int]:
        """Height and width, before the frames are turned."""
        return self._reader.frame_size

    @property
    def timestamps(self) -> Sequence[float] | None:
        return self._reader.timestamps

    def read(self, indices: Sequence[int]) -> np.ndarray:
        """As `VideoReader.read`."""
        return self._reader.read(indices)

    def finish(self) -> None:
        """As `VideoReader.finish`."""
        self._reader.finish()


def _pillow_reader(path: str) -> PillowReader:
    from pvlm.video.pillow_reader import PillowReader

    return PillowReader(path)


def _pyav_reader(path: str) -> PyAVReader:
    from pvlm.video.pyav_reader import PyAVReader

    return PyAVReader(path)
