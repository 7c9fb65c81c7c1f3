"""The turns of a prompt with the frames of their videos and images, in the size of each model."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import blake2b

import anyio.to_thread
import numpy as np

from pvlm.answer.question import Media, Question
from pvlm.config import AnswerOptions, Method
from pvlm.errors import OptionError, PromptError, VideoError
from pvlm.runtime.pair import Pair
from pvlm.video import Room, Video, read_video
from pvlm.video.room import Lease
from pvlm_protocols.backend import BackendError, Conversations, Processor, Role
from pvlm_protocols.codec import MAX_ARRAY_BYTES
from pvlm_protocols.limits import MAX_VIDEO_FRAMES
from pvlm_protocols.turns import OpenTurn, VideoFrames

DIGEST_BYTES = 20

Turns = Mapping[Role, tuple[OpenTurn, ...]]
"""The prompt of each model that takes part."""


@dataclass(frozen=True, eq=False)
class Footage:
    """What was read for an answer. ``videos``: of all videos and images, in the order of the turns, without frames."""

    turns: Turns
    videos: tuple[Video, ...]


async def read_turns(
    question: Question, pair: Pair, method: Method, room: Room, on_progress: Callable[[float], None]
) -> Footage:
    """Read the videos and images of a question one after the other, and resize them for each model.

    Raises PromptError where a model does not take this prompt, VideoError, and OptionError where the frames are too
    many or too large to travel.
    """
    processors: dict[Role, Processor] = {"target": pair.target_processor}
    if method != "ar" and pair.draft_processor is not None:
        processors["draft"] = pair.draft_processor
    if not question.plain:
        for role, processor in processors.items():
            if not isinstance(processor, Conversations):
                raise PromptError(
                    f"the {role}'s backend takes one question about one video, or about none: no conversation, no "
                    "second video, and no image"
                )
    media, videos = question.media, []
    frames: dict[Role, list[VideoFrames]] = {role: [] for role in processors}
    images = sum(one.kind == "image" for one in media)
    for index, one in enumerate(media):

        def report(fraction: float, index: int = index) -> None:
            on_progress((index + fraction) / len(media))

        with room.lease() as lease:
            video = await _read(one, question.options, pair, lease, report)
            for role, processor in processors.items():
                frames[role].append(await _resized(video, one, processor, images))
                _check_size(frames[role])
            videos.append(video.without_frames())
    return Footage({role: _filled(question, frames[role]) for role in processors}, tuple(videos))


async def _read(
    one: Media, options: AnswerOptions, pair: Pair, lease: Lease, on_progress: Callable[[float], None]
) -> Video:
    image = one.kind == "image"
    chosen = AnswerOptions(num_frames=1) if image else options
    video = await read_video(
        one.source,
        num_frames=chosen.num_frames,
        fps=chosen.fps,
        start=chosen.start,
        end=chosen.end,
        defaults=pair.target_processor.frame_defaults,
        reader="auto" if image else pair.config.video_reader,  # which reads pictures too
        timeout_s=pair.config.decode_timeout_s,
        lease=lease,
        on_progress=on_progress,
    )
    if image and video.source_frames != 1:
        raise VideoError(one.name, f"it has {video.source_frames} frames, but an image has one: give it as a video")
    return video


async def _resized(video: Video, one: Media, processor: Processor, images: int) -> VideoFrames:
    height, width = video.frames.shape[1:3]
    times = video.timestamps_s if one.kind == "video" else ()

    def resize() -> VideoFrames:
        if one.kind == "image" and isinstance(processor, Conversations):
            resized = processor.resize_image(video.frames, images)
        else:
            resized = processor.resize(video.frames)
        pixels = np.ascontiguousarray(resized)
        return VideoFrames(
            pixels=pixels,
            timestamps_s=times,
            checksum=zlib.crc32(pixels.data),
            kind=one.kind,
            size=(height, width),
            digest=content_digest(pixels, one.kind, (height, width), times),
        )

    try:
        return await anyio.to_thread.run_sync(resize)
    except BackendError as error:
        raise PromptError(str(error)) from error


def content_digest(pixels: np.ndarray, *described: object) -> bytes:
    """Return a digest of pixels, uint8 ``(T, H, W, 3)`` in C order, and of what else a model sees of them."""
    digest = blake2b(repr((pixels.shape, *described)).encode(), digest_size=DIGEST_BYTES)
    digest.update(pixels.data)
    return digest.digest()


def _check_size(frames: list[VideoFrames]) -> None:
    count, size = (sum(each) for each in zip(*((len(f.pixels), f.pixels.nbytes) for f in frames), strict=True))
    height, width = frames[-1].pixels.shape[1:3]
    if size > MAX_ARRAY_BYTES:
        raise OptionError(
            f"{count} frames of {width}x{height} take {size} bytes, more than the limit of {MAX_ARRAY_BYTES}: "
            "take fewer (num_frames)"
        )
    if count > MAX_VIDEO_FRAMES:
        raise OptionError(f"all videos have {count} frames, more than the limit of {MAX_VIDEO_FRAMES}: take fewer")


def _filled(question: Question, frames: list[VideoFrames]) -> tuple[OpenTurn, ...]:
    """The turns, with these frames in place of the videos and images."""
    left = iter(frames)
    return tuple(
        OpenTurn(role=turn.role, parts=tuple(part if isinstance(part, str) else next(left) for part in turn.parts))
        for turn in question.turns
    )
