"""The committed text of one session, what the draft wrote after it, and the windows that it has prepared."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from pvlm.speculation.text import Place, agreement
from pvlm_protocols.limits import MAX_OUTCOMES
from pvlm_protocols.messages import DraftWindow, Outcome, Parent, Verdict


class _Extent(NamedTuple):
    start: int
    tokens: int


class Text:
    """``committed``: the answer's settled tokens. ``line``: the committed prefix at the last rollback and the draft's
    windows after it. ``epoch``: rises whenever the draft has to leave its line without a prepared window. ``last``: the
    window at the end of the line, 0 for none.

    `outcomes` are the windows that the target holds for verdicts to come: those whose parent is a window of the line,
    and whose first token stands at a position that is not committed.
    """

    def __init__(self, committed: Sequence[int], epoch: int) -> None:
        self.committed = list(committed)
        self.line = list(committed)
        self.epoch = epoch
        self.last = 0
        self.outcomes: dict[Place, Outcome] = {}
        self._windows: dict[int, _Extent] = {}

    def parted(self, start: int) -> bool:
        """Do line and committed text differ at position ``start`` or later?"""
        end = min(len(self.line), len(self.committed))
        return agreement(self.line[start:end], self.committed[start:end]) < end - start

    @property
    def ahead(self) -> int:
        """By how many tokens the line is longer than the committed text (negative: shorter)."""
        return len(self.line) - len(self.committed)

    def restart(self) -> int:
        """Begin a new line from the committed text, in a new epoch. Returns how many tokens of the old line stay."""
        keep = agreement(self.line, self.committed)
        self.line = list(self.committed)
        self.epoch += 1
        self._forget()
        return keep

    def extend(self, window: DraftWindow) -> None:
        """Append a window to the line."""
        self.line.extend(window.tokens)
        self._windows[window.id] = _Extent(window.start, len(window.tokens))
        self.last = window.id

    def prepare(self, outcomes: Sequence[Outcome]) -> int:
        """Note the prepared windows of a message. Returns how many of them may still be needed; the others are late.

        The target gets the whole message or nothing of it, and each end keeps the first window of a place. So the
        target holds those that are noted here, as far as it has not settled them, and no others.
        """
        known, found = len(self.outcomes), dict(self.outcomes)
        for outcome in outcomes:
            if self._may_follow(parent := outcome.parent):
                found.setdefault(Place.of(parent), outcome)
        if len(found) > MAX_OUTCOMES:
            return 0
        self.outcomes = found
        return len(found) - known

    def _may_follow(self, parent: Parent) -> bool:
        """Is it the line up to a token that waits for its verdict?"""
        extent = self._windows.get(parent.window, _Extent(0, 0))
        fits = parent.offset < extent.tokens and parent.start == extent.start + parent.offset
        return fits and parent.start >= len(self.committed)

    def prepared_for(self, verdict: Verdict) -> Outcome | None:
        """The window with which the target goes on after a verdict that rejected a token: the one that the verdict
        names, or one that was on its way to the target. Call it when the verdict's tokens are committed.
        """
        if verdict.epoch != self.epoch:
            return None
        outcome = self.outcomes.get(Place(verdict.judged, verdict.offset, self.committed[-1]))
        if outcome is None or outcome.start != len(self.committed) or verdict.branch not in (0, outcome.id):
            return None
        return outcome

    def prepared_at(self, verdict: Verdict) -> int:
        """How many windows were prepared for the position that a verdict rejected."""
        at = len(self.committed)
        return sum(
            outcome.start == at and outcome.parent.window == verdict.judged for outcome in self.outcomes.values()
        )

    def follow(self, outcome: Outcome) -> None:
        """Let a prepared window be the line."""
        self._forget()
        self.line = [*self.committed, *outcome.tokens]
        self._windows[outcome.id] = _Extent(outcome.start, len(outcome.tokens))
        self.last = outcome.id

    def settle(self) -> None:
        """Forget windows and outcomes that no verdict to come can concern."""
        settled = len(self.committed)
        self._windows = {name: it for name, it in self._windows.items() if it.start + it.tokens > settled}
        self.outcomes = {name: it for name, it in self.outcomes.items() if it.start > settled}

    def _forget(self) -> None:
        self.last = 0
        self._windows.clear()
        self.outcomes.clear()
