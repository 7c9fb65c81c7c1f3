"""What an actor keeps between answers: the bound, the order of eviction, and who waits for whom."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pvlm.actors.actor import Actor
from pvlm.actors.draft import DraftActor
from pvlm.actors.prefixes import Prefixes
from pvlm.actors.target import TargetActor
from pvlm_backends.emulated import EmulatedBackend
from pvlm_protocols.backend import Backend, LoadOptions
from pvlm_protocols.messages import (
    Close,
    Failed,
    NeedVideo,
    Open,
    Opened,
    Pin,
    PrefillDone,
    PrefixesKept,
    PruneMask,
    Pruning,
    Schedule,
    VideoContent,
    Window,
)
from pvlm_protocols.turns import OpenTurn, VideoFrames
from tests.coordination.harness import Mailbox, sampling

TIMES = {"pass_ms": 0, "layers": 4, "video_tokens": 40}
BYTES = 1 << 20


@dataclass(eq=False)
class Rows:
    """A kept prefix."""

    name: str
    nbytes: int
    parent: Rows | None = None
    tokens: int = 1
    early_layer: int | None = None

    @property
    def key(self) -> bytes:
        return self.name.encode()

    @property
    def chain(self) -> list[Rows]:
        return [*([] if self.parent is None else self.parent.chain), self]


def keep(prefixes: Prefixes, rows: Rows, *videos: bytes) -> None:
    prefixes.keep(rows.chain, [None] * len(rows.chain), frozenset(videos))


def kept(prefixes: Prefixes, names: str) -> str:
    """Which of the names are kept; asking makes them no younger here."""
    return "".join(name for name in names if (name.encode(), None) in prefixes._entries)


# ---- the store ----------------------------------------------------------------------------------------------------


def test_what_was_used_least_recently_goes_first() -> None:
    prefixes = Prefixes(30)
    for name in "abc":
        keep(prefixes, Rows(name, 10))
    prefixes.find(b"a", None)
    keep(prefixes, Rows("d", 20))
    assert kept(prefixes, "abcd") == "ad"
    report = prefixes.reported()
    assert (report.count, report.nbytes, report.evicted) == (2, 30, 2)
    keep(prefixes, Rows("e", 31))  # larger than all that may be kept: nobody makes room for it
    assert kept(prefixes, "ade") == "ad"
    assert prefixes.reported().evicted == 0


def test_what_is_in_use_or_pinned_or_needed_stays() -> None:
    prefixes = Prefixes(40)
    first = Rows("a", 10)
    keep(prefixes, Rows("b", 10, first))
    keep(prefixes, Rows("c", 10), b"video")
    keep(prefixes, Rows("d", 10))
    used = prefixes.find(b"b", None)
    assert used is not None
    prefixes.use(used)
    prefixes.pin([b"video"])
    keep(prefixes, Rows("e", 20))
    assert kept(prefixes, "abcde") == "abcd"  # only d could have gone, and that is not enough
    keep(prefixes, Rows("e", 10))
    assert kept(prefixes, "abcde") == "abce"
    prefixes.leave(used)
    prefixes.pin([])
    keep(prefixes, Rows("f", 40))
    assert kept(prefixes, "abcdef") == "f"


def test_a_parent_outlives_its_children_and_a_second_copy_is_not_kept() -> None:
    prefixes = Prefixes(30)
    ours, theirs = Rows("a", 10), Rows("a", 10)
    keep(prefixes, Rows("b", 10, ours))
    keep(prefixes, Rows("c", 10, theirs))  # whose parent's rows would be in memory twice
    assert kept(prefixes, "abc") == "ab"
    keep(prefixes, Rows("d", 20))
    assert kept(prefixes, "abd") == "ad"  # the child goes before its parent, however old that is


@given(
    steps=st.lists(
        st.tuples(st.sampled_from(["keep", "find", "use", "leave", "pin"]), st.integers(0, 9), st.integers(1, 20))
    )
)
def test_the_bound_holds_and_every_row_counts_once(steps: list[tuple[str, int, int]]) -> None:
    """After any steps; what is in use stays."""
    prefixes, used = Prefixes(50), []
    for what, number, size in steps:
        name = str(number)
        parent = None if number % 3 == 0 else prefixes.find(str(number - number % 3).encode(), None)
        entry = prefixes.find(name.encode(), None)
        match what:
            case "keep" if entry is None:
                above = None if parent is None else parent.prefix
                keep(prefixes, Rows(name, size, above), name.encode())  # type: ignore[arg-type]
            case "use" if entry is not None:
                prefixes.use(entry)
                used.append(entry)
            case "leave" if used:
                prefixes.leave(used.pop())
            case "pin":
                prefixes.pin([name.encode()])
        entries = list(prefixes._entries.values())
        assert prefixes.report.nbytes == sum(one.prefix.nbytes for one in entries) <= 50
        assert prefixes.report.count == len(entries)
        assert all(entry in entries for entry in used)
        assert all(entry.parent is None or entry.parent in entries for entry in entries)


class Plain:
    """A backend that offers nothing beyond the interface."""

    def __init__(self, backend: Backend) -> None:
        self.info, self.open, self.close = backend.info, backend.open, backend.close


# ---- actors -------------------------------------------------------------------------------------------------------


def actor(role: str = "target", prefix_bytes: int = BYTES) -> tuple[Actor, Mailbox]:
    box = Mailbox()
    backend = EmulatedBackend.load(LoadOptions(json.dumps(TIMES), role=role))  # type: ignore[arg-type]
    kind = TargetActor if role == "target" else DraftActor
    return kind(backend, box, prefix_bytes=prefix_bytes), box


def frames(digest: bytes = b"a video") -> VideoFrames:
    return VideoFrames(pixels=np.ones((2, 4, 4, 3), np.uint8), digest=digest)


def opening(session: int, question: str, video: VideoFrames | None = None, **changes: Any) -> Open:
    return Open(
        session=session,
        turns=(OpenTurn(role="user", parts=(video or frames(), question)),),
        sampling=sampling(max_tokens=8, end_token_ids=()),
        pruning=Pruning(method="uv", ratio=0.5),
        schedule=Schedule(),
        window=Window(gamma=4),
        **changes,
    )


def run(actor: Actor, box: Mailbox, *messages: Any) -> None:
    """Until nothing is left to do."""
    box.incoming.extend(messages)
    while box.incoming or actor._next_ready() is not None:
        actor.turn(0)


def ask(actor: Actor, box: Mailbox, *messages: Any) -> None:
    """Answer, and close the session."""
    run(actor, box, *messages)
    run(actor, box, Close(session=messages[0].session))


def posted(box: Mailbox, kind: type) -> list[Any]:
    return [message for message in box.outgoing if isinstance(message, kind)]


def cached(box: Mailbox) -> list[int]:
    return [opened.cached_tokens for opened in posted(box, Opened)]


def test_a_second_question_runs_on_the_first_one_s_rows_and_has_a_mask_of_its_own() -> None:
    target, box = actor()
    ask(target, box, opening(1, "What is it?"))
    run(target, box, opening(2, "Why is it there?"))
    assert cached(box) == [0, 44]
    assert [(mask.session, mask.kept) for mask in posted(box, PruneMask)] == [(1, 20), (2, 20)]
    run(target, box, opening(3, "Why?", frames(b"another")))
    assert cached(box)[2] == 0
    report = posted(box, PrefixesKept)[-1]
    assert (report.count, report.evicted) == (2, 0)
    assert 0 < report.nbytes <= BYTES
    target.release()
    assert target.prefixes.report.nbytes == 0


def test_the_draft_goes_on_with_its_earlier_view_and_waits_for_no_mask() -> None:
    """A view with another share of the video is another one."""
    draft, box = actor("draft")
    mask = PruneMask(session=1, bits=b"\xff\x00\xff\x00\x00", video_tokens=40, kept=16, method="uv", ratio=0.6)
    pruning = Pruning(method="uv", ratio=0.6)
    first = msgspec.structs.replace(opening(1, "What?"), pruning=pruning)
    ask(draft, box, first, mask)
    run(draft, box, msgspec.structs.replace(opening(2, "Why is it?"), pruning=pruning))
    done = posted(box, PrefillDone)
    assert [(one.session, one.prompt_tokens) for one in done] == [(1, 4 + 16 + 1), (2, 4 + 16 + 3)]
    run(draft, box, opening(3, "Why?"))
    assert cached(box) == [0, 44, 0]
    assert len(posted(box, PrefillDone)) == 2  # the third waits for its mask


def test_of_sessions_that_need_the_same_prefix_one_computes_it() -> None:
    target, box = actor()
    run(target, box, *(opening(number, f"What is {number}?") for number in range(1, 5)))
    assert sorted(cached(box)) == [0, 44, 44, 44]
    assert len(posted(box, PrefillDone)) == 4


@pytest.mark.parametrize("how", ["closed", "failed"])
def test_who_waits_for_a_session_that_ends_computes_it_itself(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    target, box = actor()
    box.incoming.extend([opening(1, "What?"), opening(2, "Why?")])
    target.turn(0)
    assert cached(box) == [0]
    if how == "failed":
        session = target._sessions[1]
        monkeypatch.setattr(session, "prepare_on", lambda: session.opening.nonsense)
    run(target, box, *([Close(session=1)] if how == "closed" else []))
    assert cached(box) == [0, 0]
    assert [failed.session for failed in posted(box, Failed)] == ([1] if how == "failed" else [])
    assert [done.session for done in posted(box, PrefillDone)] == [2]
    assert not target.prefixes._awaited


def test_pixels_that_were_left_out_are_asked_for_where_no_prefix_has_them() -> None:
    target, box = actor()
    run(target, box, opening(1, "What?", frames().without_pixels()))
    assert [need.session for need in posted(box, NeedVideo)] == [1]
    run(target, box, VideoContent(session=1, visuals=(frames(),)))
    run(target, box, opening(2, "Why?", frames().without_pixels()))
    assert cached(box) == [0, 44]
    assert len(posted(box, NeedVideo)) == 1
    run(target, box, opening(3, "What?", frames(b"another").without_pixels()))
    run(target, box, VideoContent(session=3, visuals=(frames(),)))
    (failed,) = posted(box, Failed)
    assert "those of other videos" in failed.message


@pytest.mark.parametrize("without", ["memory", "protocol"])
def test_without_kept_prefixes_every_prompt_is_prefilled(without: str) -> None:
    """An actor asks for pixels that were left out in any case."""
    target, box = actor(prefix_bytes=0 if without == "memory" else BYTES)
    if without == "protocol":
        target.backend = Plain(target.backend)  # type: ignore[assignment]
    run(target, box, opening(1, "What?"), opening(2, "Why?", frames().without_pixels()))
    assert [need.session for need in posted(box, NeedVideo)] == [2]
    run(target, box, VideoContent(session=2, visuals=(frames(),)))
    assert cached(box) == [0, 0]
    assert len(posted(box, PrefillDone)) == 2
    assert posted(box, PrefixesKept) == []


def test_pinned_videos_stay() -> None:
    """There is room for one video, and a half."""
    target, box = actor()
    ask(target, box, opening(1, "What?"))
    size = target.prefixes.report.nbytes
    target.prefixes.max_bytes = size * 3 // 2
    run(target, box, Pin(videos=(b"a video",)))
    ask(target, box, opening(2, "What?", frames(b"another")))
    ask(target, box, opening(3, "Why?"))
    assert cached(box) == [0, 0, 44]
    run(target, box, Pin(videos=()))
    ask(target, box, opening(4, "What?", frames(b"another")))
    run(target, box, opening(5, "Why?"))
    assert cached(box)[3:] == [0, 0]
    assert sum(report.evicted for report in posted(box, PrefixesKept)) == 2


@given(order=st.lists(st.tuples(st.integers(0, 2), st.booleans(), st.integers(0, 12)), max_size=12))
def test_however_sessions_are_left_nothing_stays_in_use(order: Sequence[tuple[int, bool, int]]) -> None:
    """Sessions on three videos, of which two fit, left after any number of turns."""
    target, box = actor(prefix_bytes=9000)
    for session, (video, whole, turns) in enumerate(order, 1):
        shown = frames(bytes([video]))
        box.incoming.append(opening(session, f"What {session}?", shown if whole else shown.without_pixels()))
        for _ in range(turns):
            target.turn(0)
        if turns % 2:
            box.incoming.append(Close(session=session))
        assert target.prefixes.report.nbytes <= 9000
    while box.incoming or target._next_ready() is not None:
        target.turn(0)
    for need in posted(box, NeedVideo):
        if need.session in target._sessions:
            video = order[need.session - 1][0]
            run(target, box, VideoContent(session=need.session, visuals=(frames(bytes([video])),)))
    left = {session for session, (_, _, turns) in enumerate(order, 1) if not turns % 2}
    assert {done.session for done in posted(box, PrefillDone)} >= left
    for session in left:
        run(target, box, Close(session=session))
    entries = list(target.prefixes._entries.values())
    assert [entry.users for entry in entries] == [0] * len(entries)
    assert not target.prefixes._awaited
