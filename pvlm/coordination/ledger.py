"""What is known of one session, and the messages to its two actors that follow from it.

The handlers of `pvlm.coordination.coordinator`, `prefill` and `recovery` read and write one ledger.
"""

from __future__ import annotations

from pvlm.coordination.events import Command, ToDraftActor, ToTargetActor
from pvlm.coordination.modes import Mode, State
from pvlm.coordination.openings import Openings
from pvlm.coordination.statistics import Counts, Measurements
from pvlm.coordination.text import Text
from pvlm.speculation.policy import WindowPolicy
from pvlm_protocols.messages import Advance, Close, FinishReason, Open, Rollback, SetWindow, ToDraft, Window

Transition = tuple[Mode, list[Command]]
"""The mode after an event, and the commands that answer it."""


class Ledger:
    """``state``, ``mode``: where the session is. ``text``: what was committed and drafted. ``openings``: how it is
    opened at an actor. ``drafting``: a draft holds the session. ``held_back``: a draft is there, but the session is not
    opened at it, because a long rest is not over. ``target_window``: what the target knows of the window.
    """

    def __init__(
        self, opening: Open, policy: WindowPolicy, draft_opening: Open | None = None, draft_away: str = ""
    ) -> None:
        """``draft_opening``: opens the session at the draft, whose frames may be of another size; None: no draft.
        ``draft_away``: why no draft runs at the moment; `DraftBack` reports when one does.
        """
        self.state = State.NEW
        self.finish: FinishReason | None = None
        self.measurements = Measurements(policy)
        self.counts.draft_lost = draft_away
        self.text = Text(opening.committed, opening.epoch)
        self.openings = Openings(opening, draft_opening)
        there = draft_opening is not None and not draft_away
        self.rest = policy.rest
        self.held_back = there and self.rest.long
        self.drafting = there and not self.held_back
        self.target_window = opening.window
        self.mode = self.first_mode()

    @property
    def session(self) -> int:
        return self.openings.target.session

    @property
    def counts(self) -> Counts:
        return self.measurements.counts

    @property
    def committed(self) -> list[int]:
        return self.text.committed

    @property
    def epoch(self) -> int:
        return self.text.epoch

    @property
    def done(self) -> bool:
        return self.state in (State.FINISHED, State.FAILED)

    @property
    def target_open(self) -> bool:
        """Does the target hold the session?"""
        return self.state in (State.PREFILLING, State.DECODING)

    @property
    def paired(self) -> Mode:
        """The mode in which draft and target work together at the moment."""
        return Mode.TURNS if self.measurements.turns else self.openings.paired

    def first_mode(self) -> Mode:
        """The mode at an opening of the target."""
        if not self.drafting:
            return Mode.ALONE
        if self.openings.paired is Mode.TURNS or self.measurements.patient:
            return self.openings.paired
        return Mode.PROBING

    # ---- what the draft is told -----------------------------------------------------------------------------------

    def roll_back(self) -> list[Command]:
        self.counts.rollbacks += 1
        return self.send_back(self.measurements.window())

    def send_back(self, window: Window) -> list[Command]:
        """Raise the epoch and send the draft to the committed text."""
        keep = self.text.restart()
        tokens = tuple(self.committed[keep:])
        rollback = Rollback(session=self.session, epoch=self.epoch, keep=keep, tokens=tokens, window=window)
        return [*self._set_window(window), *self.to_draft(rollback)]

    def advance(self, branch: int = 0) -> list[Command]:
        """Confirm how much of the line is committed. ``branch``: the prepared window that the line has become."""
        window = self.measurements.window()
        length = min(len(self.committed), len(self.text.line))
        advance = Advance(session=self.session, epoch=self.epoch, length=length, window=window, branch=branch)
        return [*self._set_window(window), *self.to_draft(advance)]

    def _set_window(self, window: Window) -> list[Command]:
        """Tell the target, if what concerns it has changed."""
        told = self.target_window
        same = window.wait == told.wait and bool(window.outcomes) == bool(told.outcomes)
        same = same and abs(window.patience_ms - told.patience_ms) <= 0.1 * told.patience_ms
        if self.paired is Mode.TURNS or same or not self.target_open:
            return []
        self.target_window = window
        return [ToTargetActor(SetWindow(session=self.session, window=window))]

    def to_draft(self, message: ToDraft) -> list[Command]:
        return [ToDraftActor(message)] if self.drafting else []

    def join_draft(self, shares: bool = True) -> list[Command]:
        """Open the session at the draft, after the committed text, for a probe."""
        assert self.openings.draft is not None
        self.drafting, self.held_back = True, False
        self.text.restart()
        return self.openings.at_draft(self.openings.draft, self.text, self.measurements.probe(), shares)

    # ---- losing the draft, and ending -----------------------------------------------------------------------------

    def lose_draft(self, reason: str) -> Transition:
        """Continue without the draft: the text does not depend on it."""
        if not (self.drafting or self.held_back):
            return self.mode, []
        self.counts.draft_lost = reason
        self.drafting = self.held_back = False
        return Mode.ALONE, []

    def end(self, state: State, *told: Command) -> Transition:
        """Close the session at both actors."""
        close = Close(session=self.session)
        target: list[Command] = [ToTargetActor(close)] if self.target_open else []
        self.state = state
        return self.mode, [*told, *target, *self.to_draft(close)]
