"""Messages keep their borders, however a stream cuts its bytes."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from pvlm.transports.framing import FrameReader, framed
from pvlm_protocols.codec import MAX_FRAMES, ProtocolError

MESSAGES = st.lists(st.lists(st.binary(max_size=40), min_size=1, max_size=MAX_FRAMES), max_size=6)


def stream_of(messages: list[list[bytes]]) -> bytes:
    return b"".join(bytes(part) for frames in messages for part in framed(frames))


@given(messages=MESSAGES, cuts=st.lists(st.integers(1, 30), min_size=1, max_size=20))
def test_messages_come_out_as_they_went_in(messages: list[list[bytes]], cuts: list[int]) -> None:
    stream = stream_of(messages)
    reader = FrameReader()
    read = []
    sizes = itertools.cycle(cuts)
    while stream:
        size = next(sizes)
        read += reader.feed(stream[:size])
        stream = stream[size:]
    assert read == messages


@given(before=MESSAGES, garbage=st.binary(min_size=1, max_size=60), after=MESSAGES, cut=st.integers(1, 200))
def test_garbage_is_skipped_and_told_once(
    before: list[list[bytes]], garbage: bytes, after: list[list[bytes]], cut: int
) -> None:
    """What may be the beginning of a message is looked at until it is complete, so something must follow."""
    after = [*after, [bytes(40)]]
    stream = stream_of(before) + garbage + stream_of(after)
    reader = FrameReader()
    read = [*reader.feed(stream[:cut]), *reader.feed(stream[cut:])]
    assert [frames for frames in read if not isinstance(frames, ProtocolError)] == [*before, *after]
    assert sum(isinstance(frames, ProtocolError) for frames in read) == 1
