"""The process that decodes one video: ``python -m pvlm.video.decoding FD``; started by `pvlm.video.decoder`.

Over the socket FD it waits for its video, a JSON object (`Request`). Over the same socket it then asks for room for its
frames, and reports progress (`pvlm.video.conversation`). It writes the frames to file descriptor ``frames_fd`` as raw
bytes, in order, and a JSON object with their shape and times, or with an error (`Reply`), to ``reply_fd``. Standard
input is a life-line: at its end this process exits. An alarm ends the process if it hangs in native code.
"""

from __future__ import annotations

import json
import math
import os
import resource
import signal
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from typing import Any

import numpy as np

from pvlm.children import leave_with_parent
from pvlm.errors import ConfigError, ModelError, OptionError, VideoError
from pvlm.video.arrays import check_sides
from pvlm.video.containers import check_file
from pvlm.video.conversation import Reporter
from pvlm.video.readers import FramesRecounted, VideoReader, load_reader
from pvlm.video.request import Reply, Request
from pvlm.video.selection import at_default_rate, at_rate, check_count, consecutive, frame_range, uniform

_BATCH_BYTES = 64 << 20
_STEPS = 50
"""Reports of progress."""
_ALARM_MARGIN_S = 10
_MEMORY_MARGIN_BYTES = 4 << 30
"""Address space in addition to the frames: libraries, the decoder's own frames, its threads' stacks."""


def main(argument: str) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles the terminal's Ctrl-C
    leave_with_parent()
    with suppress(ImportError):  # ahead of need; another reader may do without it
        import_module("pvlm.video.pyav_reader")
    talk = Reporter(int(argument))
    request: Request | None = talk.request()
    if request is None:
        os._exit(0)
    _limit_memory(request["max_bytes"])
    signal.alarm(int(min(request["timeout_s"] + _ALARM_MARGIN_S, 1 << 30)))
    reply = answer(request, talk)
    with open(request["reply_fd"], "w", encoding="ascii") as file:
        json.dump(reply, file)
    sys.stderr.flush()
    os._exit(0)  # a decoder's destructors may hang


def answer(request: Request, talk: Reporter) -> Reply:
    """Decode a video. Never raises: an error becomes a reply."""
    try:
        return _decode(request, talk)
    except VideoError as error:
        return Reply(error="video", reason=error.reason)
    except (ConfigError, OptionError) as error:
        return Reply(error="option", reason=str(error))
    except ModuleNotFoundError as error:
        reason = f"the reader {request['reader']!r} needs the package {error.name!r}, which is not installed"
        return Reply(error="failure", reason=f"{reason} (pip install {error.name})", traceback=traceback.format_exc())
    except ModelError as error:
        return Reply(error="failure", reason=str(error), traceback=traceback.format_exc())
    except MemoryError:
        return Reply(error="failure", reason="decoding ran out of memory", traceback=traceback.format_exc())
    except Exception as error:
        reason = f"the reader {request['reader']!r} failed: {type(error).__name__}: {error}"
        return Reply(error="failure", reason=reason, traceback=traceback.format_exc())


def _decode(request: Request, talk: Reporter) -> Reply:
    reader_class = load_reader(request["reader"])
    check_file(request["path"], request["name"])
    reader: VideoReader = reader_class(os.path.abspath(request["path"]))
    try:
        return _read(request, reader, talk)
    except FramesRecounted:
        os.ftruncate(request["frames_fd"], 0)
        os.lseek(request["frames_fd"], 0, os.SEEK_SET)
        return _read(request, reader, talk)


def _read(request: Request, reader: VideoReader, talk: Reporter) -> Reply:
    if reader.num_frames < 1:
        raise VideoError(request["name"], "it has no frames")
    indices, times = _select(request, reader)
    check_count(len(indices))
    shape = _write_frames(request, reader, indices, talk)
    reader.finish()
    return Reply(
        shape=shape,
        indices=indices,
        timestamps_s=() if times is None else tuple(float(times[index]) for index in indices),
        source=(reader.fps, reader.num_frames),
    )


def _select(request: Request, reader: VideoReader) -> tuple[tuple[int, ...], Sequence[float] | None]:
    """Indices of the chosen frames, and the times of all frames in seconds, if known."""
    frames, fps, times = reader.num_frames, reader.fps, reader.timestamps
    if times is None and fps:
        times = [index / fps for index in range(frames)]
    first, last = 0, frames - 1
    rate, bounds = request["fps"], request["rate_bounds"]
    if times is None:
        if (rate is not None and bounds is None) or request["start"] is not None or request["end"] is not None:
            raise VideoError(request["name"], "the times of its frames are unknown; leave out fps, start and end")
    elif request["start"] is not None or request["end"] is not None:
        frame_s = 1 / fps if fps else 0.0
        first, last = frame_range(times, times[-1] + frame_s, request["start"], request["end"])
    if rate is not None and times is not None:
        if bounds is not None:
            return at_default_rate(times, first, last, rate, bounds[0], request["num_frames"], bounds[1]), times
        return at_rate(times, first, last, rate), times
    choose = consecutive if request["consecutive"] else uniform
    return choose(first, last, request["num_frames"]), times


def _write_frames(request: Request, reader: VideoReader, indices: Sequence[int], talk: Reporter) -> tuple[int, ...]:
    """Decode in batches of bounded size, once there is room for all frames.

    A reader with a ``frame_size`` gives their size before the first one is decoded. Else the first batch is one frame.
    """
    shape: tuple[int, ...] = ()
    position, batch = 0, 1
    size: tuple[int, int] | None = getattr(reader, "frame_size", None)
    if size is not None:
        _ask_for((len(indices), *size, 3), request, talk)
    with open(request["frames_fd"], "wb", closefd=False) as file:
        while position < len(indices):
            part = indices[position : position + batch]
            frames = np.ascontiguousarray(reader.read(part))
            if frames.dtype != np.uint8 or frames.ndim != 4 or len(frames) != len(part) or frames.shape[3] != 3:
                raise TypeError(f"read gave {frames.dtype} {frames.shape} for {len(part)} frames")
            if not shape:
                shape = (len(indices), *frames.shape[1:])
                if size is None:
                    _ask_for(shape, request, talk)
                elif sorted(size) != sorted(shape[1:3]):
                    raise TypeError(f"read gave frames of {shape[1:3]}, where frame_size is {size}")
                batch = max(1, min(_BATCH_BYTES // frames.nbytes, -(-len(indices) // _STEPS)))
            elif frames.shape[1:] != shape[1:]:
                raise VideoError(request["name"], f"the size of its frames changes from {shape} to {frames.shape}")
            file.write(frames.data)
            position += len(part)
            talk.progress(position / len(indices))
    return shape


def _ask_for(shape: tuple[int, ...], request: Request, talk: Reporter) -> None:
    """Wait for room. Raises VideoError or OptionError if the frames exceed a limit by themselves."""
    check_sides(shape, request["name"])
    _check_size(shape, request["max_bytes"])
    left_s = signal.alarm(0)
    talk.ask_for(math.prod(shape))
    signal.alarm(left_s)


def _check_size(shape: tuple[int, ...], max_bytes: int) -> None:
    frames, height, width, _ = shape
    needed = frames * height * width * 3
    if needed > max_bytes:
        raise OptionError(
            f"{frames} frames of {width}x{height} need {needed / 2**30:.1f} GiB, more than the limit of "
            f"{max_bytes / 2**30:.1f} GiB for all videos (max_video_bytes); ask for at most "
            f"{max_bytes // (height * width * 3)} frames"
        )


def _limit_memory(max_bytes: int) -> None:
    """Bound the address space: a file may make the decoder ask for any amount of memory."""
    most = max_bytes + _MEMORY_MARGIN_BYTES
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))


if __name__ == "__main__":
    _arguments: list[Any] = sys.argv[1:]
    main(*_arguments)
