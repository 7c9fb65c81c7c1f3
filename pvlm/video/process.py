"""The decoder process: runs `pvlm.video.decoding`, and kills it at a deadline or a cancellation.

Frames come back through an anonymous file in memory that both processes have open. So they are not copied, and no file
remains when either process dies. POSIX only.
"""

from __future__ import annotations

import json
import math
import mmap
import os
import signal
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import anyio
import numpy as np

from pvlm.children import end_child, reached_limit, start_child
from pvlm.errors import OptionError, RemoteTraceback, VideoError
from pvlm.video.anonymous import anonymous_file, read_all, write_all
from pvlm.video.conversation import Listener, NonsenseError, OnProgress
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
) -> Decoded:
    """Decode in a process of its own. ``source``: a path, or the bytes of an encoded video.

    ``lease``: takes room for the frames. ``on_progress``: gets the share that has been read.

    Raises VideoError, and OptionError for a request that this video cannot satisfy. A cancellation kills and reaps the
    process before it propagates.
    """
    with ExitStack() as files:
        files.enter_context(_limits_named(name))
        frames_fd, reply_fd, log_fd = (files.enter_context(anonymous_file()) for _ in range(3))
        ours, theirs = (files.enter_context(end) for end in socket.socketpair())
        listener = Listener(ours, lease, on_progress)
        fds = [frames_fd, reply_fd, theirs.fileno()]
        if not isinstance(source, str):
            video_fd = files.enter_context(anonymous_file())
            fds.append(video_fd)
            await anyio.to_thread.run_sync(write_all, video_fd, source)
            source = f"/dev/fd/{video_fd}"
        request = Request(
            path=source,
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
            frames_fd=frames_fd,
            reply_fd=reply_fd,
            talk_fd=theirs.fileno(),
        )
        status = await _run(request, fds, log_fd, theirs, listener)
        if status is None:
            raise VideoError(name, f"decoding took longer than {timeout_s:g} s (decode_timeout_s), so it was stopped")
        log = read_all(log_fd).decode(errors="replace").strip()[-4000:]
        text = read_all(reply_fd, 1 << 30)
        if status != 0 or not text:
            cause = RemoteTraceback(log) if log else None
            raise VideoError(name, f"the decoder process {_ending(status)}") from cause
        reply: Reply = json.loads(text)
        if "error" in reply:
            raise _error(name, reply)
        return Decoded(
            frames=_map_frames(frames_fd, tuple(reply["shape"]), name),
            indices=tuple(reply["indices"]),
            timestamps_s=tuple(reply["timestamps_s"]),
            source_fps=reply["source"][0],
            source_frames=reply["source"][1],
        )


@contextmanager
def _limits_named(name: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise VideoError(name, f"the decoder process cannot be started: {reached_limit(error)}") from error


async def _run(request: Request, fds: list[int], log_fd: int, theirs: socket.socket, listener: Listener) -> int | None:
    """Exit status of the process; None if the time limit ended it."""
    process = await start_child("pvlm.video.decoding", json.dumps(request), stdout=log_fd, stderr=log_fd, pass_fds=fds)
    try:
        theirs.close()
        with anyio.move_on_after(request["timeout_s"]) as limit:
            await listener.listen(limit)
            return await process.wait()
        return None
    except NonsenseError as error:
        raise VideoError(request["name"], f"the decoder process says what it should not say: {error}") from error
    finally:
        await end_child(process)


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
