"""The draft's windows: the one in work, the last one sent, and the branches for likely verdicts about it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from pvlm.speculation.coupling import Drafted
from pvlm.speculation.proposals import Proposal, stack_proposals
from pvlm_protocols.backend import Session
from pvlm_protocols.limits import MAX_OUTCOMES
from pvlm_protocols.messages import DraftWindow, Outcome, Parent, Prepared, Stopped, Window


@dataclass
class Written:
    """Tokens that the draft has written after one another, with their proposals and the likeliest other tokens."""

    tokens: list[int] = field(default_factory=list)
    proposals: list[Proposal] = field(default_factory=list)
    others: list[tuple[int, ...]] = field(default_factory=list)

    def add(self, drafted: Drafted) -> None:
        self.tokens.append(drafted.token)
        self.others.append(drafted.others)
        if drafted.proposal is not None:
            self.proposals.append(drafted.proposal)


@dataclass
class Work:
    """A window of the line in work, from position ``start`` on. ``parent``: the window before it, 0 after a rollback.

    ``beside``: branches that were in its passes, of all passes together. ``adopted``: its first tokens were those of a
    branch, whose time is not in ``draft_ms``.
    """

    id: int
    parent: int
    start: int
    size: int
    written: Written = field(default_factory=Written)
    draft_ms: float = 0.0
    began_s: float = 0.0
    beside: int = 0
    adopted: int = 0

    def adopt(self, branch: Branch, since_s: float) -> None:
        """What the branch holds is the beginning of the window, or all of it. ``since_s``: when the draft began with
        the branch's last token.
        """
        self.written, self.adopted = branch.written, len(branch.written.tokens)
        self.began_s = time.monotonic() if branch.complete else since_s


@dataclass
class Branch:
    """A window in work for a likely verdict, or one that was sent. ``session``: holds its rows, if anything does."""

    id: int
    parent: Parent
    rank: int
    size: int
    written: Written = field(default_factory=Written)
    session: Session | None = None
    draft_ms: float = 0.0
    complete: bool = False

    @property
    def point(self) -> int:
        """Tokens of the line before the branch's first one, ``parent.token``."""
        return self.parent.start

    @property
    def reach(self) -> int:
        """The position of its next token."""
        return self.point + 1 + len(self.written.tokens)

    @property
    def tokens(self) -> list[int]:
        """From ``parent.token`` on."""
        return [self.parent.token, *self.written.tokens]

    def grow(self, drafted: Drafted, end_tokens: Sequence[int]) -> None:
        """Append its next token."""
        self.written.add(drafted)
        self.complete = drafted.token in end_tokens or len(self.written.tokens) >= self.size

    @property
    def outcome(self) -> Outcome:
        return Outcome(id=self.id, parent=self.parent, rank=self.rank, tokens=tuple(self.written.tokens))


class _Followed(NamedTuple):
    """A window that the line continues from; see `Preparation.follow`."""

    id: int
    start: int
    written: Written
    at_once: bool


class Preparation:
    """The branches for one window of the line, and their names. ``limit``: the largest number of tokens of the answer.

    A verdict about the window drops the branches that it makes worthless; the branch of its outcome becomes the line.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._last_id = 0
        self._window: _Followed | None = None
        """The last window, if no branch is planned for it yet."""
        self.last = 0
        """Tokens of the last window that was sent or that the target continued with."""
        self._first = 0
        """The first position of the last planned window that had not been settled."""
        self._branches: list[Branch] = []
        """In work, the most valuable first."""
        self._sent: dict[int, Branch] = {}

    def new_id(self) -> int:
        self._last_id += 1
        return self._last_id

    @property
    def pending(self) -> bool:
        """Is a branch in work?"""
        return bool(self._branches)

    def due(self, committed: int) -> bool:
        """Has the target begun with the last window, so that its outcomes are next?"""
        return self._window is not None and self._window.start <= committed

    def follow(self, id: int, start: int, written: Written, *, at_once: bool) -> None:
        """A window was sent, or the target continues with it. ``at_once``: it has a window before it, so where that is
        accepted whole, its first token needs no pass and is settled when it arrives.
        """
        self._window = _Followed(id, start, written, at_once)
        self.last = len(written.tokens)

    def plan(self, counts: Sequence[int], committed: int, size: int) -> None:
        """Plan branches of ``size`` tokens for the last window: so many of the other tokens at its first position that
        needs a pass, at the second, ...
        """
        assert self._window is not None  # it is due
        (id, start, written, at_once), self._window = self._window, None
        self._first = max(start + at_once, committed)
        for position in range(self._first, start + len(written.tokens)):
            self._add(counts, id, position - start, position, written.others[position - start], size)
        self._branches.sort(key=lambda branch: (branch.rank, branch.point))

    def plan_after(self, window: Window, work: Work, others: Sequence[int]) -> None:
        """Plan branches for the position after that window, if the line's next token is the first of another one.
        ``others``: the draft's other tokens there.
        """
        if not work.written.tokens:
            self._add(window.outcomes, work.id, 0, work.start, others, window.gamma - 1)

    def _add(
        self, counts: Sequence[int], window: int, offset: int, position: int, others: Sequence[int], size: int
    ) -> None:
        place = position - self._first
        count = counts[place] if place < len(counts) else 0
        held = [branch.parent for branch in self._all()]
        for rank, token in enumerate(others[:count]):
            parent = Parent(window=window, offset=offset, token=token, start=position)
            room = min(size, self._limit - position - 1)
            if room > 0 and parent not in held and len(self._branches) + len(self._sent) < MAX_OUTCOMES:
                self._branches.append(Branch(self.new_id(), parent, rank, room))

    def growing(self) -> list[Branch]:
        return [branch for branch in self._branches if not branch.complete]

    def finished(self) -> list[Branch]:
        """The branches in work, if all are complete; they count as sent then."""
        if not self._branches or self.growing():
            return []
        return [self.finish(branch) for branch in list(self._branches)]

    def finish(self, branch: Branch) -> Branch:
        """A branch is about to be sent."""
        self._branches.remove(branch)
        self._sent[branch.id] = branch
        return branch

    def take(self, id: int) -> Branch:
        """The branch with which the target goes on. Raises ValueError for an unknown one."""
        if (branch := self._sent.pop(id, None)) is None:
            raise ValueError(f"the target continues with window {id}, which the draft does not hold")
        return branch

    def find(self, line: Sequence[int], text: Sequence[int], committed: int) -> Branch | None:
        """The branch whose prefix is ``text``, complete or not. ``line``: the text that branches start from, which
        agrees with ``text`` in its first ``committed`` tokens.
        """
        point = len(text) - 1
        if not text or list(line[committed:point]) != list(text[committed:point]):
            return None
        found = (branch for branch in self._all() if branch.point == point and branch.parent.token == text[-1])
        return next(found, None)

    def remove(self, branch: Branch) -> None:
        """Hold it no longer."""
        self._sent.pop(branch.id, None)
        self._branches = [other for other in self._branches if other is not branch]

    def settle(self, committed: int) -> None:
        """Drop the branches for tokens that have been settled."""
        for branch in list(self._all()):
            if branch.point < committed:
                self._drop(branch)

    def stop(self) -> None:
        """Drop the branches in work."""
        for branch in list(self._branches):
            self._drop(branch)

    def clear(self) -> None:
        """Drop all branches."""
        for branch in list(self._all()):
            self._drop(branch)
        self._window = None

    def _all(self) -> Iterator[Branch]:
        yield from self._branches
        yield from self._sent.values()

    def _drop(self, branch: Branch) -> None:
        if branch.session is not None:
            branch.session.close()
        self.remove(branch)


def stopped_message(epoch: int, work: Work) -> Stopped:
    """A window that a rollback ends."""
    return Stopped(
        epoch=epoch,
        start=work.start,
        tokens=len(work.written.tokens),
        draft_ms=work.draft_ms,
        ended_s=time.monotonic(),
    )


def window_message(session: int, epoch: int, work: Work, stopped: Sequence[Stopped]) -> DraftWindow:
    """A complete window of the line."""
    written = work.written
    ids, probs = stack_proposals(written.proposals) if written.proposals else (None, None)
    return DraftWindow(
        session=session,
        id=work.id,
        parent=work.parent,
        epoch=epoch,
        start=work.start,
        tokens=tuple(written.tokens),
        proposal_ids=ids,
        proposal_probs=probs,
        draft_ms=work.draft_ms,
        began_s=work.began_s,
        ended_s=time.monotonic(),
        stopped=tuple(stopped),
        beside=work.beside / max(1, len(written.tokens) - work.adopted),
        adopted=work.adopted,
    )


def prepared_message(session: int, epoch: int, branches: Sequence[Branch]) -> Prepared:
    """Complete branches."""
    proposals = [proposal for branch in branches for proposal in branch.written.proposals]
    ids, probs = stack_proposals(proposals) if proposals else (None, None)
    return Prepared(
        session=session,
        epoch=epoch,
        outcomes=tuple(branch.outcome for branch in branches),
        proposal_ids=ids,
        proposal_probs=probs,
        draft_ms=sum(branch.draft_ms for branch in branches),
        ended_s=time.monotonic(),
    )
