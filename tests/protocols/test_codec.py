"""Round trips of any message, and refusal of everything that is none: `ProtocolError`, and no other error."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from msgspec import inspect

from pvlm_protocols import codec
from pvlm_protocols.codec import (
    INLINE_BYTES,
    MAX_FRAMES,
    MAX_MESSAGE_BYTES,
    PROTOCOL_VERSION,
    Buffer,
    ProtocolError,
    decode_for_actor,
    decode_from_actor,
    encode,
)
from pvlm_protocols.limits import (
    MAX_ANSWER_TOKENS,
    MAX_FRAME_SIDE,
    MAX_ID,
    MAX_PROMPT_CHARACTERS,
    MAX_PROPOSAL,
    MAX_VIDEO_FRAMES,
    MAX_VISUALS,
)
from pvlm_protocols.messages import Close, DraftWindow, Message, Open, Ping, Rollback, SetMode, Stopped, Window
from pvlm_protocols.turns import OpenTurn, VideoFrames
from tests.protocols.samples import ALL_TYPES, FROM_ACTOR, SAMPLES, TO_ACTOR, plain
from tests.protocols.strategies import LARGE_FRAMES, LARGE_IDS, LARGE_PROBS, fields_of, messages_of
from tests.support.openings import asking

HEADER = b"PVLM" + bytes([PROTOCOL_VERSION])
DECODERS: tuple[Callable[..., Any], ...] = (decode_for_actor, decode_from_actor)

# ---- any message --------------------------------------------------------------------------------------------------

messages = messages_of(ALL_TYPES)


@settings(max_examples=300, deadline=None)
@given(message=messages)
def test_any_message_comes_back_as_it_went(message: Message) -> None:
    frames = [bytes(frame) for frame in encode(message)]
    for accepted, decode in ((TO_ACTOR, decode_for_actor), (FROM_ACTOR, decode_from_actor)):
        if isinstance(message, accepted):
            assert plain(decode(frames)) == plain(message)
        else:
            with pytest.raises(ProtocolError):
                decode(frames)


def an_opening(pixels: np.ndarray) -> Open:
    (sample,) = (message for message in SAMPLES if isinstance(message, Open))
    return msgspec.structs.replace(sample, turns=asking("?", VideoFrames(pixels=pixels)))


def test_a_small_array_travels_inline_and_a_large_one_as_a_frame_that_is_not_copied() -> None:
    side = math.isqrt(INLINE_BYTES // 3)
    assert len(encode(an_opening(np.zeros((1, side, side, 3), np.uint8)))) == 1
    pixels = np.arange(3 * (side + 1) ** 2, dtype=np.uint32).astype(np.uint8).reshape(1, side + 1, side + 1, 3)
    frames = encode(an_opening(pixels))
    assert len(frames) == 2
    assert np.shares_memory(np.frombuffer(frames[1], np.uint8), pixels)
    back = decode_for_actor(frames)
    assert isinstance(back, Open)
    assert np.shares_memory(back.visuals[0].pixels, pixels)
    again = decode_for_actor([bytes(frame) for frame in frames])
    assert isinstance(again, Open)
    assert not again.visuals[0].pixels.flags.writeable


def test_two_large_arrays_keep_their_places() -> None:
    tokens = (1,) * len(LARGE_IDS)
    message = DraftWindow(
        session=1, epoch=0, start=0, tokens=tokens, proposal_ids=LARGE_IDS, proposal_probs=LARGE_PROBS
    )
    frames = encode(message)
    assert len(frames) == 3
    assert plain(decode_from_actor(frames)) == plain(message)


# ---- what cannot be sent ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("array", "said"),
    [
        (np.zeros(3), "arrays of float64 do not travel"),
        (np.array([None]), "arrays of object do not travel"),
        (object(), "cannot encode a object"),
    ],
)
def test_only_arrays_of_the_wires_dtypes_are_sent(array: Any, said: str) -> None:
    with pytest.raises(ProtocolError, match=said):
        encode(DraftWindow(session=1, epoch=0, start=0, tokens=(), proposal_ids=array))


def test_an_array_beyond_the_limit_is_not_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codec, "MAX_ARRAY_BYTES", 100)
    message = DraftWindow(session=1, epoch=0, start=0, tokens=(), proposal_ids=np.zeros(26, np.int32))
    with pytest.raises(ProtocolError, match="arrays of 104 bytes exceed the limit of 100"):
        encode(message)


def test_a_number_beyond_64_bits_is_not_sent() -> None:
    with pytest.raises(ProtocolError, match="a number is too large to travel"):
        encode(Ping(nonce=2**64))


def test_a_message_beyond_the_limit_is_neither_sent_nor_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    message = Rollback(session=1, epoch=1, keep=0, tokens=(70_000,) * MAX_MESSAGE_BYTES, window=Window(gamma=1))
    with pytest.raises(ProtocolError, match="exceeds the limit"):
        encode(message)
    monkeypatch.setattr(codec, "MAX_MESSAGE_BYTES", 2**40)
    frames = encode(message)
    monkeypatch.undo()
    with pytest.raises(ProtocolError, match="exceeds the limit"):
        decode_for_actor(frames)


# ---- what is no message -------------------------------------------------------------------------------------------

VALID: tuple[list[bytes], ...] = tuple([bytes(frame) for frame in encode(message)] for message in SAMPLES) + tuple(
    [bytes(frame) for frame in encode(message)]
    for message in (
        an_opening(LARGE_FRAMES),
        DraftWindow(
            session=1,
            epoch=0,
            start=0,
            tokens=(1,) * len(LARGE_IDS),
            proposal_ids=LARGE_IDS,
            proposal_probs=LARGE_PROBS,
        ),
    )
)


def is_refused_or_a_message(frames: list[bytes]) -> None:
    """Whatever arrives: a message, or ProtocolError. Any other error fails the test."""
    for decode, accepted in ((decode_for_actor, TO_ACTOR), (decode_from_actor, FROM_ACTOR)):
        try:
            message = decode(frames)
        except ProtocolError:
            continue
        assert isinstance(message, accepted)


@settings(max_examples=400, deadline=None)
@given(frames=st.lists(st.binary(max_size=200), max_size=MAX_FRAMES + 1), header=st.booleans())
def test_random_bytes(frames: list[bytes], header: bool) -> None:
    if header and frames:
        frames = [HEADER + frames[0], *frames[1:]]
    is_refused_or_a_message(frames)


@st.composite
def mutated(draw: st.DrawFn) -> list[bytes]:
    """A valid message with a few bytes changed, cut out or put in, or frames lost, repeated or swapped."""
    frames = [bytearray(frame) for frame in draw(st.sampled_from(VALID))]
    for _ in range(draw(st.integers(1, 4))):
        frame = frames[draw(st.integers(0, len(frames) - 1))] if frames else bytearray()
        at = draw(st.integers(0, max(0, min(len(frame), 400) - 1)))
        match draw(st.sampled_from(["change", "flip", "cut", "insert", "truncate", "drop", "repeat", "swap"])):
            case "change" if frame:
                frame[at] = draw(st.integers(0, 255))
            case "flip" if frame:
                frame[at] ^= 1 << draw(st.integers(0, 7))
            case "cut":
                del frame[at : at + draw(st.integers(1, 9))]
            case "insert":
                frame[at:at] = draw(st.binary(min_size=1, max_size=9))
            case "truncate":
                del frame[at:]
            case "drop" if frames:
                frames.pop(draw(st.integers(0, len(frames) - 1)))
            case "repeat" if frames:
                frames.append(frames[0])
            case "swap":
                frames.reverse()
    return [bytes(frame) for frame in frames]


@settings(max_examples=600, deadline=None)
@given(frames=mutated())
def test_mutated_messages(frames: list[bytes]) -> None:
    is_refused_or_a_message(frames)


json_like = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=5)
    | st.binary(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=12,
)


@settings(max_examples=400, deadline=None)
@given(
    message=st.sampled_from(SAMPLES),
    data=st.data(),
    value=json_like,
)
def test_a_field_of_any_other_kind(message: Message, data: st.DataObject, value: Any) -> None:
    """Well-formed msgpack under the right tag, with anything at all in one of its fields."""
    fields = msgspec.msgpack.decode(bytes(encode(message)[0])[len(HEADER) :])
    name = data.draw(st.sampled_from(sorted(fields)))
    fields[name] = value
    is_refused_or_a_message([HEADER + msgspec.msgpack.encode(fields)])


@settings(max_examples=300, deadline=None)
@given(
    dtype=st.sampled_from([*codec.DTYPES, "float64", "object", ""]),
    shape=st.lists(
        st.integers(-2, 5) | st.sampled_from([2**31, 2**62, 2**64 - 1]) | st.booleans() | st.none(), max_size=5
    )
    | st.tuples(st.integers(0, 2), st.integers(0, 2), st.integers(0, 2), st.just(3)).map(list),
    where=st.integers(-2, 4) | st.binary(max_size=40) | st.booleans() | st.none() | st.text(max_size=2),
    extra=st.lists(st.binary(max_size=40), max_size=3),
)
@example(dtype="uint8", shape=[0], where=True, extra=[b""])
@example(dtype="int32", shape=[], where=bytes(4), extra=[])
@example(dtype="uint8", shape=[1, 2, 1, 3], where=b"123456", extra=[])
@example(dtype="uint8", shape=[1, 1, 1, 3], where=2, extra=[b"", b"123"])
def test_an_array_of_another_size_than_its_shape_says(
    dtype: str, shape: list[Any], where: Any, extra: list[bytes]
) -> None:
    fields = {
        **msgspec.msgpack.decode(bytes(encode(an_opening(LARGE_FRAMES))[0])[len(HEADER) :]),
        "turns": [{"role": "user", "parts": [{"pixels": [dtype, shape, where]}]}],
    }
    frames = [HEADER + msgspec.msgpack.encode(fields), *extra]
    is_refused_or_a_message(frames)
    data = extra[where - 1] if type(where) is int and 1 <= where <= len(extra) else where
    fits = (
        dtype == "uint8"
        and len(shape) == 4
        and all(type(size) is int and 0 < size <= 2**31 for size in shape)
        and shape[3] == 3
        and isinstance(data, bytes)
        and int(np.prod([1, *map(float, shape)])) == len(data)
    )
    if fits:
        opening = decode_for_actor(frames)
        assert isinstance(opening, Open)
        assert opening.visuals[0].pixels.shape == tuple(shape)
    else:
        with pytest.raises(ProtocolError):
            decode_for_actor(frames)


@pytest.mark.parametrize(
    ("frames", "said"),
    [
        ([], f"1 to {MAX_FRAMES} frames, not 0"),
        ([b""], "not a pvlm message: it starts with b''"),
        ([b"PVL"], "not a pvlm message"),
        ([b"PVLM"], "not a pvlm message"),
        ([b"pvlm\x01\x80"], "not a pvlm message: it starts with b'pvlm"),
        ([b"PVLM\x01\x80"], f"protocol version 1, but this side speaks {PROTOCOL_VERSION}"),
        ([HEADER], "not a message of this protocol"),
        ([HEADER + b"\x80"], "missing required field `type`"),
        ([HEADER + b"\x81\xa4type\xa5Other"], "Invalid value 'Other'"),
        ([HEADER + b"\x81\xa4type\xa7SetMode"], "missing required field"),
        ([HEADER + b"\x81\xa4type\xa4Stop\x00"], "trailing characters"),
        ([HEADER + b"\x91" * 400_000], "not a message of this protocol"),
        ([HEADER + b"\x82\xa4type\xa4Stop\xa1x" + b"\x91" * 400_000], "not a message of this protocol"),
        ([HEADER + b"\x81\xa4type\xa4Stop", *[b""] * MAX_FRAMES], f"1 to {MAX_FRAMES} frames, not {MAX_FRAMES + 1}"),
        ([HEADER + b"\xdf\xff\xff\xff\xff"], "truncated"),
    ],
)
def test_the_refusal_says_why(frames: list[Buffer], said: str) -> None:
    with pytest.raises(ProtocolError, match="(?i)" + said.replace("(", r"\(")):
        decode_for_actor(frames)


def test_a_message_for_the_other_side_is_refused() -> None:
    for message in SAMPLES:
        frames = encode(message)
        if not isinstance(message, TO_ACTOR):
            with pytest.raises(ProtocolError):
                decode_for_actor(frames)
        if not isinstance(message, FROM_ACTOR):
            with pytest.raises(ProtocolError):
                decode_from_actor(frames)


# ---- well-formed, but absurd --------------------------------------------------------------------------------------


def leaves(message: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], inspect.Type]]:
    """Path and type of every field of a sample, and of the structs in it."""
    for name, kind in fields_of(type(message)).items():
        value = getattr(message, name)
        if isinstance(value, msgspec.Struct):
            yield from leaves(value, (*path, name))
        elif isinstance(value, tuple) and value and isinstance(value[0], msgspec.Struct):
            yield (*path, name), kind
            yield from leaves(value[0], (*path, name, "0"))
        else:
            yield (*path, name), kind


STOPPED = Stopped(epoch=0, start=0, tokens=0, draft_ms=0.0, ended_s=0.0)


def beyond(kind: inspect.Type) -> list[Any]:
    """Values that are just out of bounds; KeyError for a field without bounds."""
    match kind:
        case inspect.IntType(ge=int(low), le=int(high)):
            return [low - 1, high + 1]
        case inspect.FloatType():
            low, high = kind.ge if kind.gt is None else kind.gt, kind.le if kind.lt is None else kind.lt
            assert low is not None
            assert high is not None
            at_the_border = [*([low] if kind.gt is not None else []), *([high] if kind.lt is not None else [])]
            return [math.nan, math.inf, -math.inf, math.nextafter(low, -math.inf), *at_the_border]
        case inspect.StrType(max_length=int(most)):
            return ["x" * (most + 1)]
        case inspect.BytesType(max_length=int(most)):
            return [b"x" * (most + 1)]
        case inspect.VarTupleType(item_type=inspect.IntType() as item, max_length=int(most)):
            return [[0] * (most + 1), *([value] for value in beyond(item))]
        case inspect.VarTupleType(item_type=inspect.FloatType() as item, max_length=int(most)):
            return [[0.0] * (most + 1), *([value] for value in beyond(item))]
        case inspect.VarTupleType(item_type=inspect.BytesType() as item, max_length=int(most)):
            return [[b""] * (most + 1), *([value] for value in beyond(item))]
        case inspect.VarTupleType(item_type=inspect.StructType(cls=cls), max_length=int(most)):
            frames = {"pixels": ["uint8", [1, 1, 1, 3], bytes(3)]}
            one = {OpenTurn: OpenTurn(role="user", parts=()), VideoFrames: frames}.get(cls, STOPPED)
            return [[one] * (most + 1)]
        case inspect.VarTupleType(
            item_type=inspect.UnionType(types=[inspect.StrType() as item, _]), max_length=int(most)
        ):
            return [["x"] * (most + 1), *([value] for value in beyond(item))]
        case inspect.TupleType(item_types=[inspect.IntType() as item, *others]):
            return [[value, *[0] * len(others)] for value in beyond(item)]
        case inspect.BoolType() | inspect.LiteralType() | inspect.UnionType() | inspect.CustomType():
            return []
        case _:
            raise KeyError(f"no bounds in {kind}")


BOUNDED = [(message, path, kind) for message in SAMPLES for path, kind in leaves(message)]


@pytest.mark.parametrize(
    ("message", "path", "kind"), BOUNDED, ids=[f"{type(m).__name__}.{'.'.join(p)}" for m, p, _ in BOUNDED]
)
def test_what_is_beyond_a_bound_is_refused(message: Message, path: tuple[str, ...], kind: inspect.Type) -> None:
    """Every number, text and tuple has bounds, and one beyond them is no message."""
    decode = decode_for_actor if isinstance(message, TO_ACTOR) else decode_from_actor
    for value in beyond(kind):
        fields = msgspec.msgpack.decode(bytes(encode(message)[0])[len(HEADER) :])
        parent = fields
        for name in path[:-1]:
            parent = parent[int(name) if name.isdigit() else name]
        parent[path[-1]] = value
        with pytest.raises(ProtocolError, match="Expected"):
            decode([HEADER + msgspec.msgpack.encode(fields)])


def test_the_most_of_everything_fits_in_a_message() -> None:
    times = tuple(0.1 * k for k in range(MAX_VIDEO_FRAMES))
    opening = msgspec.structs.replace(
        an_opening(np.zeros((MAX_VIDEO_FRAMES, 2, 2, 3), np.uint8)),
        turns=asking(
            "\U0001f3ac" * MAX_PROMPT_CHARACTERS,
            VideoFrames(pixels=np.zeros((MAX_VIDEO_FRAMES, 2, 2, 3), np.uint8), timestamps_s=times),
        ),
        committed=(MAX_ID,) * MAX_ANSWER_TOKENS,
    )
    assert plain(decode_for_actor(encode(opening))) == plain(opening)


@pytest.mark.parametrize(
    "video",
    [
        VideoFrames(pixels=np.zeros((0, 2, 2, 3), np.uint8)),
        VideoFrames(pixels=np.zeros((1, 0, 2, 3), np.uint8)),
        VideoFrames(pixels=np.zeros((0, 2, 2, 3), np.uint8), left_out=2),
        VideoFrames(pixels=np.zeros((2, 2, 2, 3), np.uint8), left_out=2, digest=b"d"),
        VideoFrames(pixels=np.zeros((1, 2, 2, 4), np.uint8)),
        VideoFrames(pixels=np.zeros((2, 2, 3), np.uint8)),
        VideoFrames(pixels=np.zeros((1, 2, 2, 3), np.float32)),
        VideoFrames(pixels=np.zeros((1, MAX_FRAME_SIDE + 1, 1, 3), np.uint8)),
        VideoFrames(pixels=np.zeros((MAX_VIDEO_FRAMES + 1, 1, 1, 3), np.uint8)),
        VideoFrames(pixels=np.zeros((3, 2, 2, 3), np.uint8), timestamps_s=(0.0, 1.0)),
    ],
    ids=lambda video: f"{video.pixels.dtype}{video.pixels.shape}-{video.left_out}",
)
def test_arrays_that_are_no_frames_are_refused(video: VideoFrames) -> None:
    frames = encode(msgspec.structs.replace(an_opening(video.pixels), turns=asking("?", video)))
    with pytest.raises(ProtocolError, match=r"are no frames|2 times for 3 frames"):
        decode_for_actor(frames)


@pytest.mark.parametrize(
    ("turns", "said"),
    [
        (asking("?", VideoFrames(pixels=np.zeros((MAX_VIDEO_FRAMES // 2 + 1, 1, 1, 3), np.uint8))) * 2, "16386 frames"),
        (asking("?", VideoFrames(pixels=np.zeros((1, 1, 1, 3), np.uint8))) * (MAX_VISUALS + 1), "33 videos and images"),
        (asking("x" * (MAX_PROMPT_CHARACTERS // 2 + 1)) * 2, "65538 characters"),
    ],
)
def test_what_all_turns_have_together_is_bounded(turns: tuple[OpenTurn, ...], said: str) -> None:
    opening = msgspec.structs.replace(an_opening(LARGE_FRAMES), turns=turns)
    with pytest.raises(ProtocolError, match=f"a prompt with {said} exceeds the limit"):
        decode_for_actor(encode(opening))


@pytest.mark.parametrize(
    ("ids", "probs"),
    [
        (np.zeros((2, 4), np.int32), None),
        (None, np.zeros((2, 4), np.float32)),
        (np.zeros((3, 4), np.int32), np.zeros((3, 4), np.float32)),
        (np.zeros((2, 4), np.int32), np.zeros((2, 5), np.float32)),
        (np.zeros((2, 4), np.float32), np.zeros((2, 4), np.float32)),
        (np.zeros(2, np.int32), np.zeros(2, np.float32)),
        (np.zeros((2, MAX_PROPOSAL + 1), np.int32), np.zeros((2, MAX_PROPOSAL + 1), np.float32)),
    ],
)
def test_proposals_that_are_not_of_the_windows_tokens_are_refused(
    ids: np.ndarray | None, probs: np.ndarray | None
) -> None:
    frames = encode(DraftWindow(session=1, epoch=0, start=0, tokens=(1, 2), proposal_ids=ids, proposal_probs=probs))
    for decode in DECODERS:
        with pytest.raises(ProtocolError, match="proposal"):
            decode(frames)


# ---- fields are told by their names -------------------------------------------------------------------------------


def body(fields: Any) -> list[bytes]:
    return [HEADER + msgspec.msgpack.encode(fields)]


def test_the_order_of_fields_does_not_matter() -> None:
    fields = {"mode": "alone", "session": 7, "type": "SetMode"}
    assert decode_for_actor(body(fields)) == SetMode(session=7, mode="alone")


def test_a_message_without_names_is_refused() -> None:
    """As an array, swapped fields of one type would decode silently wrong."""
    with pytest.raises(ProtocolError):
        decode_for_actor(body(["SetMode", 7, "alone"]))


def test_a_renamed_field_is_refused() -> None:
    with pytest.raises(ProtocolError, match="missing required field `mode`"):
        decode_for_actor(body({"type": "SetMode", "session": 7, "pace": "alone"}))


def test_a_field_that_is_not_known_is_passed_over() -> None:
    assert decode_for_actor(body({"type": "Close", "session": 7, "why": ["?"]})) == Close(session=7)


def test_numbers_and_texts_are_not_taken_for_each_other() -> None:
    for nonce in ("3", 3.5, None, True, [3]):
        with pytest.raises(ProtocolError, match=r"\$\.nonce"):
            decode_for_actor(body({"type": "Ping", "nonce": nonce}))
    assert decode_for_actor(body({"type": "Ping", "nonce": 3})) == Ping(nonce=3)
