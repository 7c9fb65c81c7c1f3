"""The turns of a prompt with the frames of their videos and images, in the size of each model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from pvlm.answer.question import Question
from pvlm.answer.sight import Looking, Sights
from pvlm.config import Method
from pvlm.errors import OptionError, PromptError
from pvlm.runtime.pair import Pair
from pvlm.video import Video
from pvlm_protocols.backend import Conversations, Processor, Role
from pvlm_protocols.codec import MAX_ARRAY_BYTES
from pvlm_protocols.limits import MAX_VIDEO_FRAMES
from pvlm_protocols.turns import OpenTurn, VideoFrames

Turns = Mapping[Role, tuple[OpenTurn, ...]]
"""The prompt of each model that takes part."""


@dataclass(frozen=True, eq=False)
class Footage:
    """What was read for an answer. ``videos``: of all videos and images, in the order of the turns, without frames."""

    turns: Turns
    videos: tuple[Video, ...]


def processors_of(pair: Pair, *, draft: bool) -> dict[Role, Processor]:
    """The processors of the models that take part in an answer."""
    found: dict[Role, Processor] = {"target": pair.target_processor}
    if draft and pair.draft_processor is not None:
        found["draft"] = pair.draft_processor
    return found


async def read_turns(
    question: Question, pair: Pair, method: Method, sights: Sights, on_progress: Callable[[float], None]
) -> Footage:
    """Read the videos and images of a question one after the other, and resize them for each model.

    Raises PromptError where a model does not take this prompt, VideoError, and OptionError where the frames are too
    many or too large to travel.
    """
    processors = processors_of(pair, draft=method != "ar")
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

        if (sight := one.sight) is None:
            looking = Looking(one.kind, one.name, one.source, question.options, images, processors)
            sight = await sights.see(looking, report)
        for role in processors:
            frames[role].append(sight.frames[role])
            _check_size(frames[role])
        videos.append(sight.video)
    return Footage({role: _filled(question, frames[role]) for role in processors}, tuple(videos))


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
