"""Decoder processes: each is started ahead of need, serves one video, and ends.

Starting an interpreter takes some tenths of a second. So while one video is asked about, the process for the next one
starts.
"""

from __future__ import annotations

import asyncio
import json
import socket
from contextlib import ExitStack, suppress

import anyio

from pvlm.children import end_child, places, start_child
from pvlm.video.anonymous import anonymous_file
from pvlm.video.request import Request


class Decoder:
    """A process of `pvlm.video.decoding` that waits for its video, or works on it. Made by `start`."""

    def __init__(self) -> None:
        self._files = ExitStack()
        try:
            self.frames_fd, self.reply_fd, self.log_fd, self.video_fd = (
                self._files.enter_context(anonymous_file()) for _ in range(4)
            )
            ours, theirs = socket.socketpair()
            self.talk, self._theirs = self._files.enter_context(ours), self._files.enter_context(theirs)
            self.talk_fd = theirs.fileno()
        except BaseException:
            self._files.close()
            raise
        self._places = places()
        self._process: asyncio.subprocess.Process | None = None

    @classmethod
    async def start(cls) -> Decoder:
        """Start a process. Raises OSError."""
        decoder = cls()
        try:
            decoder._process = await start_child(
                "pvlm.video.decoding",
                str(decoder.talk_fd),
                stdout=decoder.log_fd,
                stderr=decoder.log_fd,
                pass_fds=[decoder.frames_fd, decoder.reply_fd, decoder.talk_fd, decoder.video_fd],
            )
            decoder._theirs.close()
        except BaseException:
            await decoder.aclose()
            raise
        return decoder

    @property
    def fit(self) -> bool:
        """Whether it still waits for a video, and would import what a new process imports."""
        return self._process is not None and self._process.returncode is None and self._places == places()

    def ask(self, request: Request) -> None:
        """Give it its video. Raises OSError where it has died."""
        self.talk.sendall(json.dumps(request).encode() + b"\n")

    async def status(self) -> int:
        """Wait for its exit status."""
        assert self._process is not None  # it was started
        return await self._process.wait()

    async def aclose(self) -> None:
        """Kill it, if it still runs, and free its memory. Frames that were mapped stay."""
        try:
            if self._process is not None:
                await end_child(self._process)
        finally:
            self._files.close()


class Decoders:
    """The decoder processes of one engine. At most one is ahead of need. ``refills``: after each video the next process
    is started.
    """

    def __init__(self, *, refills: bool = False) -> None:
        self._refills = refills
        self._spare: Decoder | None = None
        self._starting: asyncio.Task[None] | None = None
        self._closed = False

    async def take(self) -> Decoder:
        """Return a process that waits for a video; the caller closes it. Raises OSError."""
        if self._starting is not None:
            await asyncio.wait([self._starting])
        spare, self._spare = self._spare, None
        if spare is not None and spare.fit:
            return spare
        if spare is not None:
            await spare.aclose()
        return await Decoder.start()

    def served(self) -> None:
        """A video was read: start the process for the next one."""
        if self._refills:
            self.prepare()

    def prepare(self) -> None:
        """Start the next process, unless one waits. Should that fail, a later `take` says why."""
        if not self._closed and self._starting is None and self._spare is None:
            self._starting = asyncio.create_task(self._start())

    async def _start(self) -> None:
        try:
            with suppress(OSError):
                self._spare = await Decoder.start()
        finally:
            self._starting = None

    async def aclose(self) -> None:
        """End the process that is ahead of need."""
        self._closed = True
        with anyio.CancelScope(shield=True):
            if self._starting is not None:
                await asyncio.wait([self._starting])
            spare, self._spare = self._spare, None
            if spare is not None:
                await spare.aclose()
