"""Decoding a video in a process of its own, which is killed at a deadline or a cancellation.

Frames come back through an anonymous file in memory that both processes have open. So they are not copied, and no file
remains when either process dies. POSIX only.
"""

from __future__ import annotations

import json
import math
import mmap
import os
import signal
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager, suppress
from dataclasses import dataclass

import anyio
import numpy as np

from pvlm.children import reached_limit
from pvlm.errors import OptionError, RemoteTraceback, VideoError
from pvlm.video.anonymous import read_all, write_all
from pvlm.video.conversation import Listener, NonsenseError, OnProgress
from pvlm.video.decoder import Decoder, Decoders
from pvlm.video.request import Reply, Request
from pvlm.video.room import Lease


@dataclass(frozen=True)
class Decoded:
    """Frames, uint8 ``(T, H, W, 3)``, with their indices and times; see `pvlm.video.Video`."""

    frames: np.ndarray
    indices: tuple[int, ...]
    timestamps_s: tuple[float, ...]
    source_fps: float | None
    source_frames: int


async def decode(
    source: str | bytes | bytearray | memoryview,
    name: str,
    *,
    reader: str,
    num_frames: int,
    consecutive: bool,
    fps: float | None,
    rate_bounds: tuple[int, int] | None,
    start: float | None,
    end: float | None,
    timeout_s: float,
    lease: Lease,
    on_progress: OnProgress | None,
    decoders: Decoders,
) -> Decoded:
    """Decode in a process of its own. ``source``: a path, or the bytes of an encoded video.

    ``lease``: takes room for the frames. ``on_progress``: gets the share that has been read. ``decoders``: gives the
    process.

    Raises VideoError, and OptionError for a request that this video cannot satisfy. A cancellation kills and reaps the
    process before it propagates.
    """
    async with AsyncExitStack() as stack:
        stack.enter_context(_limits_named(name))
        decoder = await decoders.take()
        stack.callback(decoders.served)
        stack.push_async_callback(decoder.aclose)
        if isinstance(source, str):
            path = _absolute(source)
        else:
            await anyio.to_thread.run_sync(write_all, decoder.video_fd, source)
            path = f"/dev/fd/{decoder.video_fd}"
        request = Request(
            path=path,
            name=name,
            reader=reader,
            num_frames=num_frames,
            consecutive=consecutive,
            fps=fps,
            rate_bounds=rate_bounds,
            start=start,
            end=end,
            max_bytes=lease.max_bytes,
            timeout_s=timeout_s,
            frames_fd=decoder.frames_fd,
            reply_fd=decoder.reply_fd,
        )
        status = await _run(decoder, request, lease, on_progress)
        if status is None:
            raise VideoError(name, f"decoding took longer than {timeout_s:g} s (decode_timeout_s), so it was stopped")
        log = read_all(decoder.log_fd).decode(errors="replace").strip()[-4000:]
        text = read_all(decoder.reply_fd, 1 << 30)
        if status != 0 or not text:
            cause = RemoteTraceback(log) if log else None
            raise VideoError(name, f"the decoder process {_ending(status)}") from cause
        reply: Reply = json.loads(text)
        if "error" in reply:
            raise _error(name, reply)
        return Decoded(
            frames=_map_frames(decoder.frames_fd, tuple(reply["shape"]), name),
            indices=tuple(reply["indices"]),
            timestamps_s=tuple(reply["timestamps_s"]),
            source_fps=reply["source"][0],
            source_frames=reply["source"][1],
        )


def _absolute(path: str) -> str:
    """The process may have been started in another directory."""
    try:
        return os.path.abspath(path)
    except OSError:  # the current directory is deleted
        return path


@contextmanager
def _limits_named(name: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise VideoError(name, f"the decoder process cannot be started: {reached_limit(error)}") from error


async def _run(decoder: Decoder, request: Request, lease: Lease, on_progress: OnProgress | None) -> int | None:
    """Exit status of the process; None if the time limit ended it."""
    try:
        with suppress(ConnectionError):  # it has died, and its exit status says how
            decoder.ask(request)
        with anyio.move_on_after(request["timeout_s"]) as limit:
            await Listener(decoder.talk, lease, on_progress).listen(limit)
            return await decoder.status()
        return None
    except NonsenseError as error:
        raise VideoError(request["name"], f"the decoder process says what it should not say: {error}") from error


def _map_frames(fd: int, shape: tuple[int, ...], name: str) -> np.ndarray:
    """The frames in place, as a writable array. The mapping lives as long as the array and costs no copy."""
    size = math.prod(shape)
    if size < 1 or os.fstat(fd).st_size != size:
        raise VideoError(name, f"the decoder gave {os.fstat(fd).st_size} bytes for frames of {size} bytes")
    return np.frombuffer(mmap.mmap(fd, size), np.uint8).reshape(shape)


def _ending(status: int) -> str:
    if status >= 0:
        return f"ended with exit status {status} and no result"
    try:
        return f"was ended by signal {-status} ({signal.Signals(-status).name})"
    except ValueError:
        return f"was ended by signal {-status}"


def _error(name: str, reply: Reply) -> Exception:
    if reply["error"] == "option":
        return OptionError(reply["reason"])
    error = VideoError(name, reply["reason"])
    if "traceback" in reply:
        error.__cause__ = RemoteTraceback(reply["traceback"])
    return error
