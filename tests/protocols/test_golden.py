"""The wire is pinned: every message type has its bytes, and the bytes have their message."""

from __future__ import annotations

import msgspec
import pytest

from pvlm_protocols import messages
from pvlm_protocols.codec import PROTOCOL_VERSION, decode_for_actor, decode_from_actor, encode
from pvlm_protocols.messages import FromDraft, FromTarget, Message, SessionMessage, ToDraft, ToTarget
from tests.protocols.golden import GOLDEN
from tests.protocols.samples import ALL_TYPES, FROM_ACTOR, SAMPLES, TO_ACTOR, plain

HEADER = b"PVLM\x08"
by_type = pytest.mark.parametrize("message", SAMPLES, ids=lambda m: type(m).__name__)


def test_the_table_holds_every_message_type_once() -> None:
    found = {
        kind.__name__
        for kind in vars(messages).values()
        if isinstance(kind, type) and issubclass(kind, Message) and kind not in (Message, SessionMessage)
    }
    assert {kind.__name__ for kind in ALL_TYPES} == found
    assert [type(message).__name__ for message in SAMPLES] == list(GOLDEN)
    assert set(GOLDEN) == found


def test_the_protocol_version_is_the_tables() -> None:
    assert HEADER[4] == PROTOCOL_VERSION


@by_type
def test_a_message_encodes_to_its_bytes(message: Message) -> None:
    (frame,) = encode(message)
    assert bytes(frame) == HEADER + GOLDEN[type(message).__name__]


@by_type
def test_the_bytes_decode_to_the_message(message: Message) -> None:
    frames = [HEADER + GOLDEN[type(message).__name__]]
    if isinstance(message, TO_ACTOR):
        assert plain(decode_for_actor(frames)) == plain(message)
    if isinstance(message, FROM_ACTOR):
        assert plain(decode_from_actor(frames)) == plain(message)


@by_type
def test_messages_are_frozen(message: Message) -> None:
    for field in message.__struct_fields__:
        with pytest.raises(AttributeError, match="immutable"):
            setattr(message, field, getattr(message, field))


def test_every_sample_is_away_from_its_defaults() -> None:
    """Else a field could go missing from the wire unseen."""

    def check(value: msgspec.Struct) -> None:
        for field in msgspec.structs.fields(value):
            given = getattr(value, field.name)
            if isinstance(given, msgspec.Struct):
                check(given)
            elif field.default is not msgspec.NODEFAULT and field.default is not None:
                assert given != field.default, f"{type(value).__name__}.{field.name}"

    for message in SAMPLES:
        check(message)


def test_what_draft_and_target_hear_and_say_is_what_an_actor_does() -> None:
    def types(union: object) -> set[type]:
        return set(union.__args__)  # type: ignore[attr-defined]

    assert types(ToDraft) | types(ToTarget) == set(TO_ACTOR)
    assert types(FromDraft) | types(FromTarget) == set(FROM_ACTOR)
