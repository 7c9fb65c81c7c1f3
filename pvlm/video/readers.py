"""The interface of a video reader, and its lookup by name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, Protocol, cast

import numpy as np

from pvlm.plugins import load_plugin

ENTRY_POINT_GROUP: Final = "pvlm.video_readers"


class FramesRecounted(Exception):
    """The number of frames was an estimate, and has changed with their times: choose frames again. Once for a file."""


class VideoReader(Protocol):
    """A plug-in that decodes video files, registered under ``pvlm.video_readers`` as a class.

    The class is called with the path of a regular file, in a process that exists for this one file: a reader may
    block, crash and leak. Its errors reach the caller as VideoError; a VideoError keeps its text.

    A reader may also have ``frame_size``, height and width before frames are turned. Then a video that needs too much
    memory is refused, or waits for room, before its first frame is decoded.
    """

    @property
    def num_frames(self) -> int:
        """Number of frames that `read` can return."""
        ...

    @property
    def fps(self) -> float | None:
        """Average frames a second; None if unknown."""
        ...

    @property
    def timestamps(self) -> Sequence[float] | None:
        """Start of each frame, in seconds from the first frame, ascending; None if unknown."""
        ...

    def read(self, indices: Sequence[int]) -> np.ndarray:
        """The frames at ascending ``indices``: uint8 ``(len(indices), H, W, 3)`` RGB, upright.

        Called several times, with ascending parts of the wanted indices, so that memory stays bounded. `read` and
        `finish` may raise FramesRecounted.
        """
        ...

    def finish(self) -> None:
        """Called once after the last `read`. Raises VideoError if the returned frames may be the wrong ones."""
        ...


def load_reader(name: str) -> type[Any]:
    """The reader class of an entry point's name, or of an import path ``module:Class``. Raises as `load_plugin`."""
    return cast("type[Any]", load_plugin(ENTRY_POINT_GROUP, name))
