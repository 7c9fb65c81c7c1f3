"""What the models see of a video or an image: its frames, read once and kept for further questions."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b

import anyio
import anyio.to_thread
import msgspec
import numpy as np

from pvlm.config import AnswerOptions
from pvlm.errors import PromptError, VideoError
from pvlm.runtime.pair import Pair
from pvlm.telemetry.metrics import VIDEOS
from pvlm.telemetry.reporter import Reporter
from pvlm.video import Room, Video, read_video
from pvlm.video.content import DIGEST_BYTES, Content, content_of
from pvlm.video.decoder import Decoders
from pvlm.video.kept import Kept
from pvlm_protocols.backend import BackendError, Conversations, Processor, Role
from pvlm_protocols.prompt import VisualKind
from pvlm_protocols.turns import VideoFrames


@dataclass(frozen=True, eq=False)
class Sight:
    """``video``: without its frames. ``frames``: in the size of each model."""

    video: Video
    frames: Mapping[Role, VideoFrames]

    @property
    def nbytes(self) -> int:
        """Memory of the frames. Models whose frames are the same share them."""
        pixels = {id(frames.pixels): frames.pixels.nbytes for frames in self.frames.values()}
        return sum(pixels.values())


@dataclass(frozen=True, eq=False)
class Looking:
    """How a video or an image is to be read. ``images``: how many the prompt has."""

    kind: VisualKind
    name: str
    source: object
    options: AnswerOptions
    images: int
    processors: Mapping[Role, Processor]


class Sights:
    """Reads videos and images for one engine. It keeps at most ``max_bytes`` of frames, by the content of the files,
    the reader and the sampling. Of answers that need the same at the same time, one reads it.
    """

    def __init__(self, pair: Pair, room: Room, max_bytes: int, reporter: Reporter, decoders: Decoders) -> None:
        self._pair = pair
        self._room = room
        self._kept = Kept[Hashable, Sight](max_bytes, lambda sight: sight.nbytes)
        self._reporter = reporter
        self._reading: dict[Hashable, anyio.Event] = {}
        self.decoders = decoders

    async def see(self, looking: Looking, on_progress: Callable[[float], None]) -> Sight:
        """Return the frames of a video or an image.

        Raises VideoError, OptionError, and PromptError where a model does not take it.
        """
        content = None
        if self._kept.max_bytes:
            content = await anyio.to_thread.run_sync(content_of, looking.source)
        if content is None:
            return await self._read(looking, on_progress)
        name = self._name(looking, content)
        while (found := self._kept.find(name)) is None:
            if (reading := self._reading.get(name)) is not None:
                await reading.wait()
                continue
            self._reading[name] = anyio.Event()
            try:
                sight = await self._read(looking, on_progress)
                if content.unchanged():
                    self._kept.keep(name, sight)
                return sight
            finally:
                self._reading.pop(name).set()
        self._reporter.add(VIDEOS, source="kept")
        on_progress(1.0)
        return found

    def _name(self, looking: Looking, content: Content) -> Hashable:
        options, image = looking.options, looking.kind == "image"
        sampling = looking.images if image else (options.num_frames, options.fps, options.start, options.end)
        return content.digest, looking.kind, self._pair.config.video_reader, sampling, tuple(looking.processors)

    async def _read(self, looking: Looking, on_progress: Callable[[float], None]) -> Sight:
        config, image = self._pair.config, looking.kind == "image"
        chosen = AnswerOptions(num_frames=1) if image else looking.options
        with self._room.lease() as lease:
            video = await read_video(
                looking.source,  # type: ignore[arg-type]  # which is checked there
                num_frames=chosen.num_frames,
                fps=chosen.fps,
                start=chosen.start,
                end=chosen.end,
                defaults=self._pair.target_processor.frame_defaults,
                reader="auto" if image else config.video_reader,  # which reads pictures too
                timeout_s=config.decode_timeout_s,
                lease=lease,
                on_progress=on_progress,
                decoders=self.decoders,
            )
            if image and video.source_frames != 1:
                raise VideoError(
                    looking.name, f"it has {video.source_frames} frames, but an image has one: give it as a video"
                )
            self._reporter.add(VIDEOS, source="read")
            frames: dict[Role, VideoFrames] = {}
            for role, processor in looking.processors.items():
                try:
                    found = await anyio.to_thread.run_sync(partial(self._resized, video, looking, processor))
                except BackendError as error:
                    raise PromptError(str(error)) from error
                same = (one for one in frames.values() if one.digest == found.digest != b"")
                frames[role] = next(same, found)
            return Sight(video.without_frames(), frames)

    def _resized(self, video: Video, looking: Looking, processor: Processor) -> VideoFrames:
        if looking.kind == "image" and isinstance(processor, Conversations):
            resized = processor.resize_image(video.frames, looking.images)
        else:
            resized = processor.resize(video.frames)
        pixels = np.ascontiguousarray(resized)
        height, width = video.frames.shape[1:3]
        frames = VideoFrames(
            pixels=pixels,
            timestamps_s=video.timestamps_s if looking.kind == "video" else (),
            checksum=zlib.crc32(pixels.data),
            kind=looking.kind,
            size=(height, width),
            digest=b"",
        )
        return with_digest(frames) if self._kept.max_bytes else frames


def with_digest(frames: VideoFrames) -> VideoFrames:
    """Return the same with the digest of all that a model sees of them."""
    described = frames.pixels.shape, frames.kind, frames.size, frames.timestamps_s
    digest = blake2b(repr(described).encode(), digest_size=DIGEST_BYTES)
    digest.update(frames.pixels.data)
    return msgspec.structs.replace(frames, digest=digest.digest())
