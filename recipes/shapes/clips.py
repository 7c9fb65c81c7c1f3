"""Writes frames to mp4 files (H.264, yuv420p), as clips from elsewhere would be."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

FRAMES_PER_SECOND = 4


def write_clip(path: str | Path, frames: NDArray[np.uint8], fps: int = FRAMES_PER_SECOND, crf: int = 18) -> None:
    """Encode (frames, height, width, 3) RGB bytes as an mp4 file."""
    count, height, width, channels = frames.shape
    if count == 0 or channels != 3 or height % 2 or width % 2:
        raise ValueError(f"cannot encode frames of shape {frames.shape}")
    with av.open(str(path), mode="w") as container:
        stream = container.add_stream("libx264", rate=fps)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.options = {"crf": str(crf), "preset": "medium"}
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def read_clip(path: str | Path) -> NDArray[np.uint8]:
    """Decode every frame of a video file to (frames, height, width, 3) RGB bytes."""
    import decord

    reader = decord.VideoReader(str(path), num_threads=1)
    return np.asarray(reader.get_batch(range(len(reader))).asnumpy())
