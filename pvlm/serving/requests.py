"""A chat completion as it is asked for: JSON in; turns, media and the engine's options out. No I/O."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from pvlm.config import AnswerOptions, answer_options
from pvlm.errors import OptionError
from pvlm.redaction import shown
from pvlm.serving.refusals import Refusal, invalid, refusal_of
from pvlm_protocols.limits import MAX_PROMPT_CHARACTERS

Uuid = Annotated[str, Meta(min_length=1, max_length=256)]
Role = Literal["system", "developer", "user", "assistant"]

NEUTRAL: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "best_of": (1,),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "repetition_penalty": (1,),
    "length_penalty": (1,),
    "logit_bias": ({},),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "prompt_logprobs": (0,),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "parallel_tool_calls": (True, False),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "echo": (False,),
    "use_beam_search": (False,),
    "min_tokens": (0,),
    "add_generation_prompt": (True,),
    "continue_final_message": (False,),
    "skip_special_tokens": (True,),
    "reasoning_effort": ("none",),
}
"""Fields that are not supported, and the values with which they change nothing; null is always one."""
IGNORED = {
    "user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention",
    "priority", "request_id",
}  # fmt: skip
"""Fields that never change an answer."""
SAMPLING = (
    "max_tokens", "temperature", "top_p", "min_p", "seed", "stop", "stop_token_ids", "ignore_eos",
    "coupling", "start", "end", "method", "parallel_prefill", "parallel_decode", "prune", "prune_ratio", "window",
    "outcomes",
)  # fmt: skip
"""Fields that are options of `AnswerOptions` by the same name."""
MAX_VALUES = 4 * MAX_PROMPT_CHARACTERS
"""A limit of the values in a body, and of the commas in its texts. Values take more memory and time than their bytes,
and the whole server waits for their parsing.
"""
IMAGE_DETAILS = ("auto", "high")
"""An image is always seen as the checkpoint sees it."""


class _Strict(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    pass


class _VideoUrl(_Strict, frozen=True):
    url: str | None


class _ImageUrl(_Strict, frozen=True):
    url: str | None
    detail: str | None = None


class TextPart(_Strict, frozen=True, tag_field="type", tag="text"):
    """Text of a message."""

    text: str


class VideoPart(_Strict, frozen=True, tag_field="type", tag="video_url"):
    """A video of a message. ``uuid``: the caller's name for it."""

    video_url: _VideoUrl
    uuid: Uuid | None = None

    @property
    def url(self) -> str | None:
        """Where the video is."""
        return self.video_url.url


class ImagePart(_Strict, frozen=True, tag_field="type", tag="image_url"):
    """An image of a message."""

    image_url: _ImageUrl
    uuid: Uuid | None = None

    @property
    def url(self) -> str | None:
        """Where the image is."""
        return self.image_url.url


Part = TextPart | VideoPart | ImagePart


class Message(_Strict, frozen=True):
    """One turn of the conversation."""

    role: Role
    content: str | list[Part]
    name: str | None = None

    @property
    def parts(self) -> list[Part]:
        """The content as parts."""
        return [TextPart(text=self.content)] if isinstance(self.content, str) else self.content


class _FrameOptions(_Strict, frozen=True):
    num_frames: int | None = None
    fps: float | None = None


class _MediaOptions(_Strict, frozen=True):
    video: _FrameOptions = _FrameOptions()


class _StreamOptions(_Strict, frozen=True):
    include_usage: bool = False


class _Body(_Strict, frozen=True):
    messages: Annotated[list[Message], Meta(min_length=1)]
    model: str | None = None
    stream: bool = False
    stream_options: _StreamOptions | None = None
    media_io_kwargs: _MediaOptions | None = None
    mm_processor_kwargs: _FrameOptions | None = None
    cache_salt: str | None = None
    watch: bool = False
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool | None = None
    coupling: str | None = None
    start: float | None = None
    end: float | None = None
    method: str | None = None
    parallel_prefill: bool | None = None
    parallel_decode: bool | None = None
    prune: str | None = None
    prune_ratio: float | None = None
    window: int | str | None = None
    outcomes: int | str | None = None


@dataclass(frozen=True)
class ChatRequest:
    """What a caller asks. ``options``: keywords of `Engine.answer`, with known and valid values."""

    messages: tuple[Message, ...]
    options: Mapping[str, Any]
    model: str | None
    stream: bool
    include_usage: bool
    watch: bool
    """Send what draft and target do with each piece of a stream."""
    cache_salt: str

    @property
    def stop(self) -> tuple[str, ...]:
        """The strings that end the answer."""
        return answer_options(self.options).stop_strings

    @property
    def media(self) -> list[VideoPart | ImagePart]:
        """The videos and images of all turns, in order."""
        return [part for message in self.messages for part in message.parts if not isinstance(part, TextPart)]


def parse(body: bytes | bytearray) -> ChatRequest:
    """The request in a body. Raises Refusal, which names the field that is to blame."""
    if sum(body.count(mark) for mark in (b"[", b"{", b",")) > MAX_VALUES:
        raise invalid("the body has too many lists, objects and commas", code="invalid_json")
    try:
        fields = msgspec.json.decode(body)
    except (msgspec.DecodeError, RecursionError, ValueError) as error:
        raise invalid(f"the body is no JSON: {error}", code="invalid_json") from None
    if not isinstance(fields, dict):
        raise invalid(f"the body is a {type(fields).__name__}: send a JSON object", code="invalid_json")
    try:
        found = msgspec.convert(_supported(fields), _Body)
    except (msgspec.ValidationError, RecursionError, OverflowError) as error:
        raise _misfit(str(error)) from None
    _check_messages(found)
    stream_options = found.stream_options
    if stream_options is not None and not found.stream:
        raise invalid("stream_options needs stream: true", "stream_options")
    if found.watch and not found.stream:
        raise invalid("watch needs stream: true", "watch")
    return ChatRequest(
        messages=tuple(found.messages),
        options=_options(found),
        model=found.model,
        stream=found.stream,
        include_usage=stream_options is not None and stream_options.include_usage,
        watch=found.watch,
        cache_salt=found.cache_salt or "",
    )


def _supported(fields: dict[str, Any]) -> dict[str, Any]:
    """The fields that have a meaning here. Raises Refusal for others that would change the answer."""
    supported = {}
    for name, value in fields.items():
        if name in IGNORED:
            continue
        if name not in NEUTRAL:
            supported[name] = value
        elif value is not None and value not in NEUTRAL[name]:
            raise invalid(f"{name}={shown(value)} is not supported here", name, "unsupported_parameter")
    return supported


def _misfit(message: str) -> Refusal:
    """The refusal for msgspec's error, whose path becomes the field's name."""
    reason, _, path = message.partition(" - at `")
    param = path.rstrip("`").removeprefix("$").removeprefix(".") or None
    if unknown := re.search(r"unknown field `(.*)`", reason):
        name = f"{param}.{unknown[1]}" if param else unknown[1]
        return invalid(f"the field {shown(name)} is unknown or not supported here", name, "unsupported_parameter")
    return invalid(f"{param}: {reason}" if param else reason, param)


def _check_messages(body: _Body) -> None:
    for number, message in enumerate(body.messages):
        for part in message.parts:
            if isinstance(part, ImagePart) and (detail := part.image_url.detail) not in (None, *IMAGE_DETAILS):
                where = f"messages[{number}].content"
                raise invalid(f"image_url.detail={shown(detail)} is not supported: use 'auto' or leave it out", where)


def _options(body: _Body) -> dict[str, Any]:
    """Options of the answer. Raises Refusal for invalid ones."""
    options = {name: value for name in SAMPLING if (value := getattr(body, name)) is not None}
    if (limit := body.max_completion_tokens) is not None and options.setdefault("max_tokens", limit) != limit:
        raise invalid("max_tokens and max_completion_tokens differ: give one of them", "max_completion_tokens")
    if body.top_k is not None:
        options["top_k"] = 0 if body.top_k == -1 else body.top_k  # vLLM's "off"
    if isinstance(stop := options.get("stop"), list):
        options["stop"] = tuple(stop)
    if "stop_token_ids" in options:
        options["stop_token_ids"] = tuple(options["stop_token_ids"])
    if ":" in options.get("prune", ""):  # an import path would run code of the caller's choice
        raise invalid(f"prune={shown(options['prune'])} is no name of a pruner", "prune")
    options |= _frame_options(body)
    try:
        answer_options(options)
    except OptionError as error:
        raise refusal_of(error) from None
    return options


def _frame_options(body: _Body) -> dict[str, Any]:
    """``num_frames`` and ``fps``, which two fields may give."""
    given = {
        "media_io_kwargs": None if body.media_io_kwargs is None else body.media_io_kwargs.video,
        "mm_processor_kwargs": body.mm_processor_kwargs,
    }
    options: dict[str, Any] = {}
    for field, frames in given.items():
        for name in ("num_frames", "fps"):
            value = None if frames is None else getattr(frames, name)
            if value is not None and options.setdefault(name, value) != value:
                raise invalid(f"media_io_kwargs and mm_processor_kwargs give two values of {name}", field)
    return options


def conversation(request: ChatRequest, media: Sequence[bytes | str]) -> list[dict[str, Any]]:
    """The turns for `Engine.answer` (``messages``). ``media``: the bytes or the path of each of `ChatRequest.media`."""
    left = iter(media)
    turns = []
    for message in request.messages:
        parts: list[dict[str, Any]] = []
        for part in message.parts:
            match part:
                case TextPart(text=text):
                    parts.append({"type": "text", "text": text})
                case VideoPart():
                    parts.append({"type": "video", "video": next(left)})
                case ImagePart():
                    parts.append({"type": "image", "image": next(left)})
        turns.append({"role": "system" if message.role == "developer" else message.role, "content": parts})
    return turns


assert set(SAMPLING) <= set(AnswerOptions.__struct_fields__)
