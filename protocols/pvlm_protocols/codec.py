"""Bytes <-> message: one frame for the message, further frames for its large arrays.

Frame 0 is ``b"PVLM"``, one byte of protocol version, and the msgpack map. An array travels as ``[dtype, shape,
where]``, where ``where`` is its bytes, or the number of the frame that holds them if it is larger than
`INLINE_BYTES`. Nothing is pickled.

Decoding is strict: a value beyond the bounds of its type (`pvlm_protocols.messages`), or an array of the wrong dtype or
shape for its field, makes a message invalid.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import numpy as np

from pvlm_protocols.limits import (
    MAX_FRAME_SIDE,
    MAX_PROMPT_CHARACTERS,
    MAX_PROPOSAL,
    MAX_VIDEO_FRAMES,
    MAX_VISUALS,
)
from pvlm_protocols.messages import DraftWindow, FromActor, Message, Open, Prepared, ToActor, VideoContent
from pvlm_protocols.turns import VideoFrames

PROTOCOL_VERSION = 8
INLINE_BYTES = 64 * 1024
MAX_MESSAGE_BYTES = 2 * 1024 * 1024
MAX_ARRAY_BYTES = 2 * 1024**3
"""Of all arrays of a message together."""
MAX_FRAMES = 1 + MAX_VISUALS
DTYPES = ("uint8", "int32", "float32")

_HEADER = b"PVLM" + bytes([PROTOCOL_VERSION])

Buffer = bytes | bytearray | memoryview


class ProtocolError(ValueError):
    """Bytes that form no valid message of this protocol version, or exceed its limits."""


def encode(message: Message) -> list[Buffer]:
    """Encode a message into frames. Large arrays are not copied. Raises ProtocolError beyond the limits."""
    frames: list[Buffer] = [b""]

    def array(value: Any) -> Any:
        if not isinstance(value, np.ndarray):
            raise ProtocolError(f"cannot encode a {type(value).__name__}")
        if value.dtype.name not in DTYPES:
            raise ProtocolError(f"arrays of {value.dtype.name} do not travel, only {', '.join(DTYPES)}")
        value = np.asarray(value, order="C")
        if (size := value.nbytes + sum(memoryview(frame).nbytes for frame in frames[1:])) > MAX_ARRAY_BYTES:
            raise ProtocolError(f"arrays of {size} bytes exceed the limit of {MAX_ARRAY_BYTES}")
        if value.nbytes <= INLINE_BYTES:
            return [value.dtype.name, value.shape, value.tobytes()]
        frames.append(value.reshape(-1).view(np.uint8).data)
        return [value.dtype.name, value.shape, len(frames) - 1]

    try:
        body = msgspec.msgpack.Encoder(enc_hook=array).encode(message)
    except OverflowError as error:
        raise ProtocolError(f"a number is too large to travel: {error}") from error
    if len(body) > MAX_MESSAGE_BYTES:
        raise ProtocolError(f"a message of {len(body)} bytes exceeds the limit of {MAX_MESSAGE_BYTES}")
    frames[0] = _HEADER + body
    return frames


def _decoder(union: Any) -> Callable[[Sequence[Buffer]], Any]:
    plain = msgspec.msgpack.Decoder(union, dec_hook=lambda _, value: _array(value, ()))

    def decode(frames: Sequence[Buffer]) -> Any:
        if not 1 <= len(frames) <= MAX_FRAMES:
            raise ProtocolError(f"a message has 1 to {MAX_FRAMES} frames, not {len(frames)}")
        head = memoryview(frames[0])
        if len(head) > MAX_MESSAGE_BYTES + len(_HEADER):
            raise ProtocolError(f"a message of {len(head)} bytes exceeds the limit of {MAX_MESSAGE_BYTES}")
        if bytes(head[: len(_HEADER)]) != _HEADER:
            raise ProtocolError(_header_problem(bytes(head[: len(_HEADER)])))
        decoder = plain
        if len(frames) > 1:
            decoder = msgspec.msgpack.Decoder(union, dec_hook=lambda _, value: _array(value, frames))
        try:
            message = decoder.decode(head[len(_HEADER) :])
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise ProtocolError(f"not a message of this protocol: {error}") from error
        _check_arrays(message)
        return message

    return decode


def _header_problem(header: bytes) -> str:
    if header[:4] != b"PVLM" or len(header) < 5:
        return f"not a pvlm message: it starts with {header!r}"
    return f"protocol version {header[4]}, but this side speaks {PROTOCOL_VERSION}: use the same pvlm on both sides"


def _array(value: Any, frames: Sequence[Buffer]) -> np.ndarray:
    match value:
        case [str(dtype), [*shape], where] if dtype in DTYPES and type(where) in (bytes, int):
            pass
        case _:
            raise ProtocolError("an array is [dtype, shape, bytes or frame number]")
    if not all(type(size) is int and 0 <= size <= MAX_ARRAY_BYTES for size in shape) or len(shape) > 4:
        raise ProtocolError(f"{shape} is no shape of an array")
    if isinstance(where, int):
        if not 1 <= where < len(frames):
            raise ProtocolError(f"array frame {where} of a message with {len(frames)} frames")
        data: Buffer = frames[where]
    else:
        data = where
    size = math.prod(shape) * np.dtype(dtype).itemsize
    if memoryview(data).nbytes != size or size > MAX_ARRAY_BYTES:
        raise ProtocolError(f"an array of shape {tuple(shape)} and {memoryview(data).nbytes} bytes")
    return np.frombuffer(data, dtype=dtype).reshape(shape)


def _check_arrays(message: Message) -> None:
    """Raise ProtocolError for an array of the wrong dtype or shape for its field, and for too large a prompt."""
    match message:
        case Open():
            _check_prompt(message)
        case VideoContent():
            _check_visuals(message.visuals)
        case DraftWindow():
            _check_proposals(message, len(message.tokens))
        case Prepared():
            _check_proposals(message, sum(len(outcome.tokens) for outcome in message.outcomes))


def _check_proposals(message: DraftWindow | Prepared, tokens: int) -> None:
    ids, probs = message.proposal_ids, message.proposal_probs
    if (ids is None) != (probs is None):
        raise ProtocolError("a proposal is ids and probabilities: one of them is missing")
    if ids is not None and probs is not None:
        fits = ids.dtype == np.int32 and probs.dtype == np.float32 and ids.shape == probs.shape
        if not fits or ids.ndim != 2 or len(ids) != tokens or ids.shape[1] > MAX_PROPOSAL:
            raise ProtocolError(
                f"proposals of {ids.dtype} {ids.shape} and {probs.dtype} {probs.shape} for {tokens} tokens"
            )


def _check_prompt(opening: Open) -> None:
    _check_visuals(opening.visuals)
    characters = sum(len(part) for turn in opening.turns for part in turn.parts if isinstance(part, str))
    _check_count(characters, MAX_PROMPT_CHARACTERS, "characters")


def _check_visuals(visuals: Sequence[VideoFrames]) -> None:
    for visual in visuals:
        pixels, times = visual.pixels, visual.timestamps_s
        fits = pixels.dtype == np.uint8 and pixels.ndim == 4 and pixels.shape[3] == 3 and min(pixels.shape[1:]) > 0
        whole = bool(pixels.size) != bool(visual.left_out) and (not visual.left_out or visual.digest)
        if not (fits and whole) or len(pixels) > MAX_VIDEO_FRAMES or max(pixels.shape[1:3]) > MAX_FRAME_SIDE:
            raise ProtocolError(f"pixels of {pixels.dtype} {pixels.shape} are no frames")
        if len(times) not in (0, visual.frames):
            raise ProtocolError(f"{len(times)} times for {visual.frames} frames")
    _check_count(len(visuals), MAX_VISUALS, "videos and images")
    _check_count(sum(visual.frames for visual in visuals), MAX_VIDEO_FRAMES, "frames")


def _check_count(count: int, most: int, what: str) -> None:
    if count > most:
        raise ProtocolError(f"a prompt with {count} {what} exceeds the limit of {most}")


decode_for_actor: Callable[[Sequence[Buffer]], ToActor] = _decoder(ToActor)
decode_from_actor: Callable[[Sequence[Buffer]], FromActor] = _decoder(FromActor)
