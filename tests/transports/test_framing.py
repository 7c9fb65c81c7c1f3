"""Messages keep their borders, however a stream cuts its bytes."""

from __future__ import annotations

import itertools
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pvlm.transports.framing import FrameReader, framed
from pvlm.transports.link import ConnectionDamaged
from pvlm_protocols.codec import MAX_FRAMES

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


@given(before=MESSAGES, garbage=st.binary(min_size=5, max_size=60), cut=st.integers(1, 200))
def test_garbage_after_whole_messages_is_found(before: list[list[bytes]], garbage: bytes, cut: int) -> None:
    """What came before it is read."""
    stream = stream_of(before) + b"?" + garbage + stream_of([[bytes(40)]])
    reader = FrameReader()
    read: list[list[bytes]] = []
    with pytest.raises(ConnectionDamaged):
        for part in (stream[:cut], stream[cut:]):
            for frames in reader.feed(part):
                read.append(frames)
    assert read == before


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"hello, who is there?", "not a framed message: it starts with b'hello'"),
        (b"PVLF\x00", "1 to 33 frames, not 0"),
        (b"PVLF\x22", "1 to 33 frames, not 34"),
        (b"PVLF\x01" + bytes(12), "its checksum differs"),
        (b"PVLF\x02" + (1).to_bytes(8, "little") + (2**63).to_bytes(8, "little"), "its checksum differs"),
    ],
)
def test_what_is_no_framed_message_is_named(data: bytes, said: str) -> None:
    with pytest.raises(ConnectionDamaged, match=said):
        list(FrameReader().feed(data + bytes(4)))


def test_a_frame_beyond_the_limit_is_refused_before_it_is_read() -> None:
    header = b"PVLF\x01" + (2**22 + 1).to_bytes(8, "little")
    with pytest.raises(ConnectionDamaged, match="a frame of 4194305 bytes exceeds the limit of 4194304"):
        list(FrameReader().feed(header + zlib.crc32(header).to_bytes(4, "little")))
