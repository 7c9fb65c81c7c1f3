"""After a loss sessions are opened again one at a time, suspects last."""

from __future__ import annotations

from collections import Counter
from typing import Any, cast

from pvlm.coordination.events import TargetBack
from pvlm.runtime.revival import Revival
from pvlm.runtime.session import LiveSession


class Session:
    """What a revival uses of a `LiveSession`. One that ``ended`` is not opened."""

    def __init__(self, number: int, losses: int = 0, ended: bool = False, suspected: bool = False) -> None:
        self.id = number
        self.suspected = {"target"} if suspected else set()
        self.shares: bool | None = None
        self.losses = Counter({"target": losses})
        self.holders: set[str] = set()
        self.prefilling: set[str] = set()
        self.ended = ended

    def handle(self, event: object) -> None:
        assert isinstance(event, TargetBack)
        if not self.ended:
            self.shares = event.shares
            self.holders.add("target")
            self.prefilling.add("target")


def begun(*sessions: Session, kept: frozenset[int] = frozenset()) -> Revival:
    revival = Revival("target", TargetBack)
    revival.begin(cast("list[LiveSession]", list(sessions)), kept)
    return revival


def opened(sessions: list[Any]) -> list[int]:
    return [session.id for session in sessions if session.holders]


def test_one_is_opened_after_the_other_and_suspects_last() -> None:
    sessions = [Session(1, losses=1), Session(2), Session(3)]
    revival = begun(*sessions)
    assert opened(sessions) == [2]
    revival.proceed()
    assert opened(sessions) == [2]
    sessions[1].prefilling.clear()
    revival.proceed()
    assert opened(sessions) == [2, 3]
    sessions[2].prefilling.clear()
    revival.proceed()
    assert opened(sessions) == [1, 2, 3]
    assert not revival.waiting


def test_sessions_that_have_ended_delay_nobody() -> None:
    sessions = [Session(1, ended=True), Session(2, ended=True), Session(3)]
    begun(*sessions)
    assert opened(sessions) == [3]


def test_kept_sessions_are_resumed_at_once() -> None:
    sessions = [Session(1), Session(2), Session(3), Session(4)]
    begun(*sessions, kept=frozenset({2, 4}))
    assert opened(sessions) == [1, 2, 4]


def test_another_loss_ends_it() -> None:
    sessions = [Session(1), Session(2)]
    revival = begun(*sessions)
    revival.end()
    sessions[0].prefilling.clear()
    revival.proceed()
    assert opened(sessions) == [1]


def test_who_shared_a_pass_in_which_the_actor_was_lost_has_passes_of_its_own() -> None:
    sessions = [Session(1, suspected=True), Session(2)]
    revival = begun(*sessions)
    sessions[1].prefilling.clear()
    revival.proceed()
    assert [session.shares for session in sessions] == [False, True]
