"""Messages come out of a link as they went in, or the connection is lost: no fault passes unseen."""

from __future__ import annotations

import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pvlm.transports.link import ConnectionDamaged, Link
from pvlm_protocols.codec import Buffer

Frames = list[Buffer]
MESSAGES = st.lists(st.lists(st.binary(max_size=20), min_size=1, max_size=3), min_size=1, max_size=12)


def sealed(messages: list[Frames]) -> list[Frames]:
    """As they travel."""
    link = Link()
    return [[bytes(frame) for frame in link.send(frames)] for frames in messages]


def received(link: Link, frames: Frames) -> Frames:
    return [bytes(frame) for frame in link.receive(frames)]


@given(messages=MESSAGES)
def test_messages_come_out_as_they_went_in(messages: list[Frames]) -> None:
    link = Link()
    assert [received(link, frames) for frames in sealed(messages)] == messages


@given(messages=MESSAGES, data=st.data())
@settings(max_examples=300, deadline=None)
def test_a_lost_repeated_swapped_or_damaged_message_is_found(messages: list[Frames], data: st.DataObject) -> None:
    """Everything before it arrives. The loss of the last message shows when another one follows."""
    travelling = sealed([*messages, [b"another"], [b"one more"]])
    at = data.draw(st.integers(0, len(messages) - 1))
    match data.draw(st.sampled_from(["lost", "repeated", "swapped", "bit", "cut", "frame"])):
        case "lost":
            del travelling[at]
            bad = at
        case "repeated":
            travelling.insert(at, travelling[at])
            bad = at + 1
        case "swapped":
            travelling[at], travelling[at + 1] = travelling[at + 1], travelling[at]
            bad = at
        case "bit":
            place = data.draw(st.sampled_from([n for n, frame in enumerate(travelling[at]) if frame]))
            changed = bytearray(travelling[at][place])
            changed[data.draw(st.integers(0, len(changed) - 1))] ^= 1 << data.draw(st.integers(0, 7))
            travelling[at][place] = bytes(changed)
            bad = at
        case "cut":
            travelling[at][0] = travelling[at][0][:-1]
            bad = at
        case "frame":
            travelling[at].append(b"")
            bad = at
    link = Link()
    for frames in travelling[:bad]:
        received(link, frames)
    with pytest.raises(ConnectionDamaged):
        received(link, travelling[bad])


@pytest.mark.parametrize(
    ("frames", "said"),
    [
        ([], "not a message of a pvlm link"),
        ([b""], "not a message of a pvlm link"),
        ([b"PVLK"], "not a message of a pvlm link"),
        ([b"PVLM" + bytes(40)], "it starts with b'PVLM'"),
        ([b"PVLK" + bytes(40)], "its checksum differs"),
        ([*Link().send([b"x"]), b"y"], "its checksum differs"),
    ],
)
def test_what_is_no_message_of_a_link_is_refused(frames: Frames, said: str) -> None:
    with pytest.raises(ConnectionDamaged, match=said):
        Link().receive(frames)


def test_a_gap_and_a_repeat_are_named() -> None:
    first, second, third = sealed([[b"1"], [b"2"], [b"3"]])
    link = Link()
    link.receive(first)
    with pytest.raises(ConnectionDamaged, match="message 3 follows message 1"):
        link.receive(third)
    with pytest.raises(ConnectionDamaged, match="message 1 follows message 1"):
        link.receive(first)
    link.receive(second)


def test_a_known_checksum_of_an_array_is_sent_and_not_computed() -> None:
    """The other end computes it: a wrong one is damage."""
    head, array = b"head", bytes(range(256)) * 1024
    known = zlib.crc32(array)
    assert Link().send([head, array], [known]) == Link().send([head, array])
    assert Link().send([head, array, array], [None, known]) == Link().send([head, array, array])
    for wrong in ([known ^ 1], [known ^ 1, known], [None, known ^ 1]):
        with pytest.raises(ConnectionDamaged, match="its checksum differs"):
            Link().receive(Link().send([head, *[array] * len(wrong)], wrong))
    assert Link().send([head], [17]) == Link().send([head])  # the array is small, and travels in the first frame
