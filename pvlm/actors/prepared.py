"""What the target holds of the draft's windows: the line, and the windows that are prepared for its verdicts."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

from pvlm.speculation.coupling import Drafted
from pvlm.speculation.proposals import InvalidProposal, unstack_proposals
from pvlm.speculation.text import Place, agreement
from pvlm_protocols.limits import MAX_OUTCOMES
from pvlm_protocols.messages import DraftWindow, Prepared


class Waiting(NamedTuple):
    """A drafted token that waits for its verdict; ``offset``: its place in a window."""

    drafted: Drafted
    window: int
    offset: int

    @property
    def token(self) -> int:
        return self.drafted.token


class _Continuation(NamedTuple):
    id: int
    start: int
    drafted: list[Drafted]


class HeldWindows:
    """The windows of one epoch. ``committed``: the answer's tokens, which the target appends to. ``limit``: the largest
    number of tokens of the answer.

    The one rule of epochs: a rejection whose outcome is not prepared ends the epoch. After that nothing of the epoch is
    taken but the prepared window for that very rejection, which may arrive late. Only the coordinator begins a new one.
    """

    def __init__(self, committed: list[int], epoch: int, limit: int) -> None:
        self.queue: deque[Waiting] = deque()
        """Drafted tokens that continue the committed ones."""
        self.epoch = epoch
        self._committed = committed
        self._limit = limit
        self._last = 0
        """The window at the end of the queue, or the last one that was there."""
        self._ended = False
        self._missed: Place | None = None
        self._prepared: dict[Place, _Continuation] = {}

    @property
    def prepared(self) -> int:
        """How many prepared windows are held."""
        return len(self._prepared)

    def begin(self, epoch: int) -> None:
        """Drop everything, and wait for the windows of an epoch."""
        self.epoch = epoch
        self._last = 0
        self._ended, self._missed = False, None
        self.queue.clear()
        self._prepared.clear()

    def take(self, window: DraftWindow) -> None:
        """Queue what is new in a window of the line. One that contradicts the committed text ends its epoch."""
        if window.epoch > self.epoch:
            self.begin(window.epoch)
        if window.epoch < self.epoch or self._ended or window.parent != self._last:
            return
        if window.start <= self._reach:
            self._enqueue(_Continuation(window.id, window.start, _unpack(window.tokens, window)))

    def take_prepared(self, message: Prepared) -> None:
        """Keep windows for later verdicts, or continue with the one that the last verdict lacked."""
        if message.epoch > self.epoch:
            self.begin(message.epoch)
        if message.epoch < self.epoch:
            return
        drafted = deque(_unpack([token for outcome in message.outcomes for token in outcome.tokens], message))
        for outcome in message.outcomes:
            parent = outcome.parent
            place = Place.of(parent)
            tokens = [drafted.popleft() for _ in outcome.tokens]
            continuation = _Continuation(outcome.id, outcome.start, tokens)
            if place == self._missed and outcome.start <= self._reach:
                self._ended, self._missed = False, None
                self._enqueue(continuation)
                return
            if self._waits_for(place, parent.start) and len(self._prepared) < MAX_OUTCOMES:
                self._prepared.setdefault(place, continuation)

    def accept(self, count: int) -> None:
        """The first ``count`` queued tokens are committed: drop them, and what was prepared for other tokens there."""
        for _ in range(min(count, len(self.queue))):
            self.queue.popleft()
        if self._prepared:
            settled = len(self._committed)
            self._prepared = {place: held for place, held in self._prepared.items() if held.start > settled}

    def reject(self, rejected: Waiting, token: int) -> int:
        """``token`` was committed in place of a queued one. Continue with the window prepared for it and return its id,
        or end the epoch and return 0.
        """
        place = Place(rejected.window, rejected.offset, token)
        found = self._prepared.get(place)
        self.queue.clear()
        self._prepared.clear()
        if found is None or found.start != len(self._committed):
            self._ended, self._missed = True, place
            return 0
        self._enqueue(found)
        return found.id

    def _waits_for(self, place: Place, position: int) -> bool:
        """Does a queued token stand at that place? A window that is not of the line has none, and needs no room."""
        index = position - len(self._committed)
        if not 0 <= index < len(self.queue):
            return False
        return (self.queue[index].window, self.queue[index].offset) == (place.window, place.offset)

    @property
    def _reach(self) -> int:
        """Answer tokens that are committed or wait for their verdict."""
        return len(self._committed) + len(self.queue)

    def _enqueue(self, window: _Continuation) -> None:
        """Append what is new in it to the queue."""
        decided = self._committed[window.start :]
        tokens = [drafted.token for drafted in window.drafted]
        if agreement(tokens, decided) < min(len(tokens), len(decided)):
            self._ended = True
            self.queue.clear()
            self._prepared.clear()
            return
        new = range(self._reach - window.start, min(len(tokens), self._limit - window.start))
        self.queue.extend(Waiting(window.drafted[offset], window.id, offset) for offset in new)
        self._last = window.id


def _unpack(tokens: Sequence[int], message: DraftWindow | Prepared) -> list[Drafted]:
    """The tokens of a message with their proposals. Raises InvalidProposal if there are not as many of both."""
    if message.proposal_ids is None or message.proposal_probs is None:
        return [Drafted(token, None) for token in tokens]
    proposals = unstack_proposals(message.proposal_ids, message.proposal_probs)
    if len(proposals) != len(tokens):
        raise InvalidProposal(f"{len(tokens)} tokens, but {len(proposals)} proposals")
    return [Drafted(token, proposal) for token, proposal in zip(tokens, proposals, strict=True)]
