"""What an application asks: a question about a video, or a conversation whose last turn asks."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from pvlm.config import AnswerOptions, check_question, check_text
from pvlm.errors import OptionError
from pvlm.redaction import shown
from pvlm_protocols.limits import MAX_PARTS, MAX_PROMPT_CHARACTERS, MAX_TURNS, MAX_VISUALS
from pvlm_protocols.prompt import Speaker, VisualKind

if TYPE_CHECKING:
    from pvlm.answer.sight import Sight
    from pvlm.video.reading import VideoSource


@dataclass(frozen=True, eq=False)
class Media:
    """A video or an image, as the application gave it."""

    kind: VisualKind
    source: VideoSource
    sight: Sight | None = None
    """What was read of it already."""

    @property
    def name(self) -> str:
        """A file's name without its folder, because a trace may be shown to others; else what it is in words."""
        source = self.source
        if isinstance(source, str | os.PathLike):
            return Path(source).name
        if isinstance(source, bytes | bytearray | memoryview):
            return f"{len(source)} bytes"
        if self.kind == "image" or not isinstance(source, Sized):
            return "an image"
        return f"{len(source)} frames"


@dataclass(frozen=True, eq=False)
class AskedTurn:
    """What one side says: texts, videos and images in their order."""

    role: Speaker
    parts: tuple[str | Media, ...]


@dataclass(frozen=True, eq=False)
class Question:
    """What an application asks. Raises OptionError where no model could be asked this."""

    turns: tuple[AskedTurn, ...]
    options: AnswerOptions

    def __post_init__(self) -> None:
        if not any(media.kind == "video" for media in self.media):
            for name in ("num_frames", "fps", "start", "end"):
                if (value := getattr(self.options, name)) is not None:
                    raise OptionError(f"{name}={value!r} needs a video, and this question is about none")

    @classmethod
    def asked(
        cls, video: VideoSource | None, question: str | None, messages: Sequence[Mapping[str, Any]] | None,
        options: AnswerOptions,
    ) -> Question:  # fmt: skip
        """A question from the arguments of `Engine.answer`. Raises OptionError."""
        if messages is None:
            check_question(question)
            assert question is not None
            parts = (question,) if video is None else (Media("video", video), question)
            return cls((AskedTurn("user", parts),), options)
        if video is not None or question is not None:
            raise OptionError("messages hold the whole prompt: give either them, or a video and a question")
        return cls(turns_of(messages), options)

    @property
    def media(self) -> tuple[Media, ...]:
        """The videos and images, in the order of the turns."""
        return tuple(part for turn in self.turns for part in turn.parts if isinstance(part, Media))

    @property
    def plain(self) -> bool:
        """A single question about one video or none, which every backend takes; see `Prompt.of`."""
        match self.turns:
            case (AskedTurn(role="user", parts=(str(),) | (Media(kind="video"), str())),):
                return True
        return False


def turns_of(messages: object) -> tuple[AskedTurn, ...]:
    """The turns of a conversation in OpenAI's form. Raises OptionError with the place of what is wrong."""
    if not isinstance(messages, list | tuple) or not messages:
        raise OptionError(f"messages must be a list of one or more dicts with role and content, not {shown(messages)}")
    turns = tuple(_turn(message, f"messages[{index}]", index == 0) for index, message in enumerate(messages))
    if turns[-1].role != "user":
        raise OptionError(f"messages must end with the user's question, not with a turn of the {turns[-1].role}")
    texts = [part for turn in turns for part in turn.parts if isinstance(part, str)]
    if not any(part.strip() for part in turns[-1].parts if isinstance(part, str)):
        raise OptionError("the last message has no text: ask something")
    for count, most, what in (
        (len(turns), MAX_TURNS, "turns"),
        (max(len(turn.parts) for turn in turns), MAX_PARTS, "parts in a turn"),
        (sum(len(turn.parts) for turn in turns) - len(texts), MAX_VISUALS, "videos and images"),
        (sum(map(len, texts)), MAX_PROMPT_CHARACTERS, "characters"),
    ):
        if count > most:
            raise OptionError(f"messages have {count} {what}: they may have {most}; shorten the conversation")
    return turns


def _turn(message: object, place: str, first: bool) -> AskedTurn:
    if not isinstance(message, Mapping) or set(message) != {"role", "content"}:
        raise OptionError(f"{place} must be a dict with the keys role and content, not {shown(message)}")
    role, content = message["role"], message["content"]
    if not _is_one_of(role, get_args(Speaker)):
        raise OptionError(f"{place} has the role {shown(role)}: it may be {', '.join(get_args(Speaker))}")
    if role == "system" and not first:
        raise OptionError(f"{place} is the system's: only the first message may be")
    if isinstance(content, str):
        content = [{"type": "text", "text": content}]
    if not isinstance(content, list | tuple) or not content:
        raise OptionError(f"{place}['content'] must be a text or a list of parts, not {shown(content)}")
    return AskedTurn(role, tuple(_part(part, f"{place}['content'][{i}]", role) for i, part in enumerate(content)))


def _part(part: object, place: str, role: Speaker) -> str | Media:
    if not isinstance(part, Mapping):
        raise OptionError(f"{place} must be a dict, such as {{'type': 'text', 'text': '...'}}, not {shown(part)}")
    kind: Any = part.get("type")
    if not _is_one_of(kind, ("text", *get_args(VisualKind))):
        raise OptionError(f"{place} has the type {shown(kind)}: it may be text, video or image")
    if set(part) != {"type", kind} or part[kind] is None:
        raise OptionError(f"{place} must have the keys type and {kind} alone, and a value, not {shown(part)}")
    if kind == "text":
        check_text(part["text"], f"{place}['text']")
        return str(part["text"])
    if role != "user":
        raise OptionError(f"{place} is of type {kind}: only the user's turns may hold videos and images")
    source = part[kind]
    if kind == "image" and getattr(source, "ndim", None) == 3:  # an array or a tensor (H, W, 3)
        source = source[None]
    return Media(kind, source)


def _is_one_of(value: object, names: Sequence[str]) -> bool:
    return isinstance(value, str) and value in names  # comparing other objects may raise anything
