"""Videos from paths, bytes, arrays, tensors and images."""

from __future__ import annotations

import math
import numbers
import os
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeAlias

import anyio
import numpy as np

from pvlm.errors import OptionError, VideoError
from pvlm.video.arrays import as_frames
from pvlm.video.conversation import OnProgress
from pvlm.video.decoder import Decoders
from pvlm.video.process import decode
from pvlm.video.room import Lease, Room
from pvlm.video.selection import check_count, consecutive, uniform
from pvlm_protocols.limits import MAX_VIDEO_FRAMES

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

    from pvlm_protocols.backend import FrameDefaults

    VideoSource: TypeAlias = (
        str | os.PathLike[str] | bytes | bytearray | memoryview | np.ndarray | torch.Tensor | Image | list[Image]
    )

_URL = re.compile(r"[a-zA-Z][\w+.-]*://|data:")


@dataclass(frozen=True, eq=False)
class Video:
    """Frames of a video.

    ``frames``: uint8 ``(T, H, W, 3)`` RGB. ``indices``: their numbers in the source, ascending. ``timestamps_s``: the
    start of each, in seconds from the start of the video; empty if unknown, as for arrays. ``source_fps``: average
    frames a second of the source, None if unknown. ``source_frames``: number of frames of the source.
    """

    frames: np.ndarray
    indices: tuple[int, ...]
    timestamps_s: tuple[float, ...]
    source_fps: float | None
    source_frames: int

    def without_frames(self) -> Video:
        """The same without its frames, ``(0, H, W, 3)``, whose memory is free then."""
        return replace(self, frames=self.frames[:0].copy())


async def read_video(
    source: VideoSource,
    *,
    num_frames: int | None,
    fps: float | None,
    start: float | None,
    end: float | None,
    defaults: FrameDefaults,
    reader: str = "auto",
    timeout_s: float = 120,
    lease: Lease | None = None,
    on_progress: OnProgress | None = None,
    decoders: Decoders | None = None,
) -> Video:
    """Read frames of a video; `pvlm.video.selection` defines their choice.

    ``source``: a path, the bytes of an encoded video, a uint8 ``(T, H, W, 3)`` array or tensor (not copied if all of
    its frames are taken), or a PIL image or a list of them.
    ``num_frames``: that many frames, uniformly; ``fps``: frames a second; neither: ``defaults``. ``start`` and ``end``,
    in seconds, restrict the part of the video. ``reader``: name of a plug-in (`VideoReader`).
    ``timeout_s``: time limit of decoding. ``lease``: takes room for the frames of a file, which other videos share;
    None: `MAX_BYTES` for this one. A wait for room does not count for the time limit. ``on_progress``: called with the
    share of the frames that has been read, for files. ``decoders``: where the process comes from; None: a new one.

    Files are decoded in a process of their own, which is killed at the time limit or when the caller is cancelled.

    Raises OptionError for invalid options, alone or for this video, and VideoError for an invalid or damaged video.
    """
    _check_options(num_frames, fps, start, end, timeout_s)
    count = defaults.num_frames if num_frames is None else int(num_frames)
    by_default = num_frames is None and fps is None
    at_default_rate = by_default and defaults.fps is not None
    every = num_frames is None and (defaults.consecutive or at_default_rate)
    if isinstance(source, list | tuple):
        frames = await anyio.to_thread.run_sync(as_frames, source)
    else:
        frames = as_frames(source)
    if frames is not None:
        for option, value in (("fps", fps), ("start", start), ("end", end)):
            if value is not None:
                raise OptionError(f"{option}={value!r} needs a file: frames in memory have no times; use num_frames")
        indices = (consecutive if every else uniform)(0, len(frames) - 1, count)
        check_count(len(indices))
        chosen = frames if len(indices) == len(frames) else frames[list(indices)]
        return Video(chosen, indices, (), None, len(frames))
    encoded, name = _encoded(source)
    decoded = await decode(
        encoded,
        name,
        reader=reader,
        num_frames=count,
        consecutive=every,
        fps=defaults.fps if at_default_rate else None if fps is None else float(fps),
        rate_bounds=(defaults.min_frames, defaults.multiple) if at_default_rate else None,
        start=None if start is None else float(start),
        end=None if end is None else float(end),
        timeout_s=timeout_s,
        lease=lease or Room().lease(),
        on_progress=on_progress,
        decoders=decoders or Decoders(),
    )
    return Video(decoded.frames, decoded.indices, decoded.timestamps_s, decoded.source_fps, decoded.source_frames)


def check_source(source: VideoSource) -> None:
    """Raise the error that `read_video` raises for an invalid source, without decoding it."""
    if isinstance(source, list | tuple) or as_frames(source) is not None:
        return
    encoded, name = _encoded(source)
    if isinstance(encoded, str) and not os.path.exists(encoded):
        raise VideoError(name, "there is no such file")


def _encoded(source: object) -> tuple[str | bytes | bytearray | memoryview, str]:
    """A path or bytes, and its name in errors."""
    if isinstance(source, bytes | bytearray | memoryview):
        size = memoryview(source).nbytes
        if size == 0:
            raise VideoError("<0 bytes>", "it is empty")
        return source, f"<{size} bytes>"
    if isinstance(source, str | os.PathLike):
        path = os.fsdecode(source)
        if not path or "\0" in path:
            raise VideoError(path, "the path is empty or has a null character in it")
        if _URL.match(path) and not os.path.exists(path):
            raise VideoError(path, "URLs are not read: download the video, and give its path or its bytes")
        return path, path
    raise OptionError(
        "a video is a path, bytes, a uint8 array (T, H, W, 3), a PIL image or a list of PIL images, not a "
        f"{type(source).__name__}"
    )


def _check_options(
    num_frames: int | None, fps: float | None, start: float | None, end: float | None, timeout_s: float
) -> None:
    if num_frames is not None and fps is not None:
        raise OptionError(f"num_frames={num_frames!r} and fps={fps!r} exclude each other; give one of them")
    if num_frames is not None and (
        not isinstance(num_frames, numbers.Integral)
        or isinstance(num_frames, bool)
        or not 1 <= num_frames <= MAX_VIDEO_FRAMES
    ):
        raise OptionError(f"num_frames must be a whole number from 1 to {MAX_VIDEO_FRAMES}, not {num_frames!r}")
    if fps is not None and not (_is_number(fps) and fps > 0):
        raise OptionError(f"fps must be a positive number, not {fps!r}")
    if not timeout_s > 0:
        raise OptionError(f"decode_timeout_s must be a positive number, not {timeout_s!r}")
    for name, value in (("start", start), ("end", end)):
        if value is not None and not (_is_number(value) and value >= 0):
            raise OptionError(f"{name} must be a time in seconds, 0 or later, not {value!r}")
    if end is not None and end <= (start or 0):
        raise OptionError(f"end={end!r} must be later than start={start or 0!r} (seconds)")


def _is_number(value: object) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value)
