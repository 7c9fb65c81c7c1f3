"""Messages keep their borders, however a stream cuts its bytes."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pvlm.transports.framing import FrameReader, framed
from pvlm_protocols.codec import MAX_FRAMES, ProtocolError

MESSAGES = st.lists(st.lists(st.binary(max_size=40), min_size=1, max_size=MAX_FRAMES), max_size=6)


@given(messages=MESSAGES, cuts=st.lists(st.integers(1, 30), min_size=1, max_size=20))
def test_messages_come_out_as_they_went_in(messages: list[list[bytes]], cuts: list[int]) -> None:
    stream = b"".join(bytes(part) for frames in messages for part in framed(frames))
    reader = FrameReader()
    read = []
    sizes = itertools.cycle(cuts)
    while stream:
        size = next(sizes)
        read += reader.feed(stream[:size])
        stream = stream[size:]
    assert read == messages


@given(messages=MESSAGES, garbage=st.binary(min_size=5, max_size=40).filter(lambda data: data[:4] != b"PVLF"))
def test_what_came_before_garbage_is_read(messages: list[list[bytes]], garbage: bytes) -> None:
    stream = b"".join(bytes(part) for frames in messages for part in framed(frames))
    read = []
    with pytest.raises(ProtocolError, match="not a framed message"):
        for frames in FrameReader().feed(stream + garbage):
            read.append(frames)
    assert read == messages
