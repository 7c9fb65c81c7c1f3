"""The reader "auto": PyAV for videos, Pillow for pictures and animated pictures, by what the file is."""

from __future__ import annotations

from pvlm.video.containers import recognize
from pvlm.video.readers import VideoReader


def open_video(path: str) -> VideoReader:
    """The reader of a file. Raises VideoError, as each reader does."""
    if recognize(path).is_picture:
        from pvlm.video.pillow_reader import PillowReader

        return PillowReader(path)
    from pvlm.video.pyav_reader import PyAVReader

    return PyAVReader(path)
