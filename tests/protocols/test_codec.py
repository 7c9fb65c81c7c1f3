"""Round trips of any message, and refusal of everything that is none: `ProtocolError`, and no other error."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import msgspec
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from pvlm_protocols import codec
from pvlm_protocols.backend import ModelInfo
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
from pvlm_protocols.messages import (
    Close,
    DraftWindow,
    Message,
    Open,
    Ping,
    Rollback,
    Step,
    Stopped,
    VideoFrames,
    Window,
)
from tests.protocols.samples import ALL_TYPES, FROM_ACTOR, SAMPLES, TO_ACTOR, plain

HEADER = b"PVLM" + bytes([PROTOCOL_VERSION])
DECODERS: tuple[Callable[..., Any], ...] = (decode_for_actor, decode_from_actor)

# ---- any message --------------------------------------------------------------------------------------------------

# Beyond INLINE_BYTES, so that it travels as a frame of its own; made once, for drawing it by element takes seconds.
LARGE = {
    np.dtype(name): np.random.default_rng(0).integers(0, 100, INLINE_BYTES // np.dtype(name).itemsize + 1).astype(name)
    for name in codec.DTYPES
}


@st.composite
def an_array(draw: st.DrawFn, dtypes: tuple[str, ...] = codec.DTYPES) -> np.ndarray:
    dtype = np.dtype(draw(st.sampled_from(dtypes)))
    if draw(st.booleans()):
        return LARGE[dtype]
    shape = draw(arrays.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4))
    array: np.ndarray = draw(arrays.arrays(dtype, shape))
    return array.T if draw(st.booleans()) else array  # not contiguous


wide = st.integers(-(2**63), 2**63 - 1)


def of_type(kind: Any) -> st.SearchStrategy[Any]:
    """Values of a field's type."""
    if kind is int:
        return wide
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return a_struct(kind)
    if kind == tuple[int, ...]:
        return st.lists(wide, max_size=5).map(tuple)
    return st.from_type(kind)


def a_struct(kind: type[msgspec.Struct]) -> st.SearchStrategy[Any]:
    fields = {field.name: of_type(field.type) for field in msgspec.structs.fields(kind)}
    return st.builds(kind, **fields)


st.register_type_strategy(np.ndarray, an_array())
for part in (Open, DraftWindow, Stopped, VideoFrames, Window, ModelInfo):
    st.register_type_strategy(part, a_struct(part))
messages: st.SearchStrategy[Message] = st.one_of([cast(Any, a_struct(kind)) for kind in ALL_TYPES])


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


def test_a_small_array_travels_inline_and_a_large_one_as_a_frame_that_is_not_copied() -> None:
    def window(size: int) -> DraftWindow:
        ids = np.arange(size, dtype=np.int32)
        return DraftWindow(session=1, epoch=0, start=0, tokens=(1,), proposal_ids=ids)

    assert len(encode(window(INLINE_BYTES // 4))) == 1
    large = window(INLINE_BYTES // 4 + 1)
    frames = encode(large)
    assert len(frames) == 2
    assert large.proposal_ids is not None
    assert np.shares_memory(np.frombuffer(frames[1], np.int32), large.proposal_ids)
    back = decode_for_actor(frames)
    assert np.shares_memory(back.proposal_ids, large.proposal_ids)
    assert not decode_for_actor([bytes(frame) for frame in frames]).proposal_ids.flags.writeable


def test_two_large_arrays_keep_their_places() -> None:
    ids = np.arange(40_000, dtype=np.int32).reshape(2, -1)
    probs = np.linspace(0, 1, 40_000, dtype=np.float32).reshape(2, -1)
    message = DraftWindow(session=1, epoch=0, start=0, tokens=(1, 2), proposal_ids=ids, proposal_probs=probs)
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
    with pytest.raises(ProtocolError, match="an array of 104 bytes exceeds the limit of 100"):
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
        DraftWindow(session=1, epoch=0, start=0, tokens=(1,), proposal_ids=LARGE[np.dtype("int32")][None]),
        DraftWindow(
            session=1,
            epoch=0,
            start=0,
            tokens=(1,),
            proposal_ids=LARGE[np.dtype("int32")][None],
            proposal_probs=LARGE[np.dtype("float32")][None],
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
        match draw(st.sampled_from(["change", "cut", "insert", "truncate", "drop", "repeat", "swap"])):
            case "change" if frame:
                frame[at] = draw(st.integers(0, 255))
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
    ),
    where=st.integers(-2, 4) | st.binary(max_size=40) | st.booleans() | st.none() | st.text(max_size=2),
    extra=st.lists(st.binary(max_size=40), max_size=3),
)
@example(dtype="uint8", shape=[0], where=True, extra=[b""])
def test_an_array_of_another_size_than_its_shape_says(
    dtype: str, shape: list[Any], where: Any, extra: list[bytes]
) -> None:
    fields = {
        "type": "DraftWindow",
        "session": 1,
        "epoch": 0,
        "start": 0,
        "tokens": [],
        "proposal_ids": [dtype, shape, where],
    }
    frames = [HEADER + msgspec.msgpack.encode(fields), *extra]
    is_refused_or_a_message(frames)
    data = extra[where - 1] if type(where) is int and 1 <= where <= len(extra) else where
    fits = (
        dtype in codec.DTYPES
        and len(shape) <= 4
        and all(type(size) is int and 0 <= size <= 2**31 for size in shape)
        and isinstance(data, bytes)
        and int(np.prod([1, *map(float, shape)])) * np.dtype(dtype).itemsize == len(data)
    )
    if fits:
        assert decode_for_actor(frames).proposal_ids.shape == tuple(shape)
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
        ([HEADER + b"\x81\xa4type\xa4Step"], "missing required field"),
        ([HEADER + b"\x81\xa4type\xa4Stop\x00"], "trailing characters"),
        ([HEADER + b"\x91" * 400_000], "not a message of this protocol"),
        ([HEADER + b"\x82\xa4type\xa4Stop\xa1x" + b"\x91" * 400_000], "not a message of this protocol"),
        ([HEADER + b"\x81\xa4type\xa4Stop", b"", b"", b"", b""], f"1 to {MAX_FRAMES} frames, not 5"),
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


# ---- fields are told by their names -------------------------------------------------------------------------------


def body(fields: Any) -> list[bytes]:
    return [HEADER + msgspec.msgpack.encode(fields)]


def test_the_order_of_fields_does_not_matter() -> None:
    fields = {"count": 3, "epoch": 1, "session": 7, "type": "Step"}
    assert decode_for_actor(body(fields)) == Step(session=7, epoch=1, count=3)


def test_a_message_without_names_is_refused() -> None:
    """As an array, swapped fields of one type would decode silently wrong."""
    with pytest.raises(ProtocolError):
        decode_for_actor(body(["Step", 7, 1, 3]))


def test_a_renamed_field_is_refused() -> None:
    with pytest.raises(ProtocolError, match="missing required field `epoch`"):
        decode_for_actor(body({"type": "Step", "session": 7, "era": 1, "count": 3}))


def test_a_field_that_is_not_known_is_passed_over() -> None:
    assert decode_for_actor(body({"type": "Close", "session": 7, "why": ["?"]})) == Close(session=7)


def test_numbers_and_texts_are_not_taken_for_each_other() -> None:
    for nonce in ("3", 3.5, None, True, [3]):
        with pytest.raises(ProtocolError, match=r"\$\.nonce"):
            decode_for_actor(body({"type": "Ping", "nonce": nonce}))
    assert decode_for_actor(body({"type": "Ping", "nonce": 3})) == Ping(nonce=3)
