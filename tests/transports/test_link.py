"""Whatever a connection does to messages, they come out as they went in: all of them, once, in order."""

from __future__ import annotations

from collections import deque

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pvlm.transports.link import ACKNOWLEDGE_EVERY, ASK_AFTER_S, Link
from pvlm_protocols.codec import Buffer, ProtocolError

Frames = list[Buffer]


class End:
    """One end, with what it was given and the frames that are on their way from it."""

    def __init__(self, clock: list[float]) -> None:
        self.link = Link(lambda: clock[0])
        self.given: list[Frames] = []
        self.way: deque[Frames] = deque()
        self.written = 0

    def send(self, frames: Frames) -> None:
        self._write(self.link.send(frames))

    def take(self, frames: Frames) -> None:
        try:
            messages, answers = self.link.receive(frames)
        except ProtocolError:
            self._write(self.link.complaint())
            return
        for answer in answers:
            self._write(answer)
        self.given += [[bytes(frame) for frame in message] for message in messages]

    def ask(self) -> None:
        if (question := self.link.question()) is not None:
            self._write(question)

    def _write(self, frames: Frames) -> None:
        self.written += 1
        self.way.append([bytes(frame) for frame in frames])


class Connection:
    def __init__(self) -> None:
        self.clock = [0.0]
        self.ends = (End(self.clock), End(self.clock))

    def deliver(self, sender: int, fault: str, at: int = 0) -> None:
        way, receiver = self.ends[sender].way, self.ends[1 - sender]
        if not way:
            return
        frames = way.popleft()
        match fault:
            case "lost":
                return
            case "twice":
                receiver.take(frames)
            case "late" if way:
                way.insert(1 + at % len(way), frames)
                return
            case "damaged":
                place = at % len(frames)
                changed = bytearray(frames[place])
                if changed:
                    changed[at % len(changed)] ^= 1 << at % 8
                    frames = [*frames[:place], bytes(changed), *frames[place + 1 :]]
            case "cut":
                frames = frames[:-1] or [b""]
        receiver.take(frames)

    def settle(self) -> None:
        """No more faults: let everything arrive, asking where time is up."""
        for _ in range(6):
            self.clock[0] += ASK_AFTER_S
            for end in self.ends:
                end.ask()
            while any(end.way for end in self.ends):
                for sender in (0, 1):
                    self.deliver(sender, "")


FRAMES = st.lists(st.binary(max_size=20), min_size=1, max_size=3)
FAULTS = st.sampled_from(["", "", "", "lost", "twice", "late", "damaged", "cut"])
ACTIONS = st.one_of(
    st.tuples(st.just("send"), st.integers(0, 1), FRAMES),
    st.tuples(st.just("deliver"), st.integers(0, 1), FAULTS, st.integers(0, 1000)),
    st.tuples(st.just("wait"), st.floats(0, 2 * ASK_AFTER_S)),
)


@given(actions=st.lists(ACTIONS, max_size=80))
@settings(max_examples=300, deadline=None)
def test_everything_arrives_once_and_in_order(actions: list[tuple]) -> None:
    connection = Connection()
    sent: tuple[list[Frames], list[Frames]] = ([], [])
    for action in actions:
        match action:
            case ("send", end, frames):
                sent[end].append(frames)
                connection.ends[end].send(frames)
            case ("deliver", sender, fault, at):
                connection.deliver(sender, fault, at)
            case ("wait", seconds):
                connection.clock[0] += seconds
                for end in connection.ends:
                    end.ask()
    connection.settle()
    assert connection.ends[0].given == sent[1]
    assert connection.ends[1].given == sent[0]
    assert all(end.link.unacknowledged == 0 and end.link.question_in_s() is None for end in connection.ends)


def test_without_faults_nothing_is_said_but_the_messages() -> None:
    connection = Connection()
    for number in range(50):
        for sender in (0, 1):
            connection.ends[sender].send([b"%d" % number])
            connection.deliver(sender, "")
    assert [end.written for end in connection.ends] == [50, 50]
    assert [end.link.dropped for end in connection.ends] == [0, 0]


def test_one_way_talk_is_acknowledged_now_and_then() -> None:
    """So what is kept for sending again does not grow with what is sent."""
    connection = Connection()
    for number in range(10 * ACKNOWLEDGE_EVERY):
        connection.ends[0].send([b"%d" % number])
        connection.deliver(0, "")
        connection.deliver(1, "")
        assert connection.ends[0].link.unacknowledged <= ACKNOWLEDGE_EVERY
    assert connection.ends[1].written == 10


def test_a_gap_is_told_once_however_much_follows_it() -> None:
    connection = Connection()
    for number in range(20):
        connection.ends[0].send([b"%d" % number])
    connection.deliver(0, "lost")
    for _ in range(19):
        connection.deliver(0, "")
    assert connection.ends[1].written == 1
    connection.deliver(1, "")
    assert connection.ends[0].link.resent == 1
    connection.settle()
    assert connection.ends[1].given == [[b"%d" % number] for number in range(20)]


def test_the_last_message_is_asked_for() -> None:
    """Nothing that follows it shows that it is lost."""
    connection = Connection()
    connection.ends[0].send([b"last"])
    connection.deliver(0, "lost")
    assert connection.ends[0].link.question_in_s() == ASK_AFTER_S
    assert connection.ends[0].link.question() is None
    connection.settle()
    assert connection.ends[1].given == [[b"last"]]


@pytest.mark.parametrize(
    ("frames", "said"),
    [
        ([], "not a message of a pvlm link"),
        ([b""], "not a message of a pvlm link"),
        ([b"PVLK"], "not a message of a pvlm link"),
        ([b"PVLM" + bytes(40)], "it starts with b'PVLM'"),
        ([b"PVLK" + bytes(40)], "damaged on its way"),
        ([*Link().send([b"x"]), b"y"], "damaged on its way"),
    ],
)
def test_what_is_no_message_of_a_link_is_refused(frames: Frames, said: str) -> None:
    with pytest.raises(ProtocolError, match=said):
        Link().receive(frames)


def test_an_acknowledgement_of_what_was_never_sent_is_refused() -> None:
    ahead, behind = Link(), Link()
    ahead.receive(behind.send([b"x"]))
    with pytest.raises(ProtocolError, match="acknowledges message 1, but only 0 were sent"):
        Link().receive(ahead.send([b"y"]))
