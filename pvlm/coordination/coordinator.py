"""One session as a state machine without I/O: ``handle(event) -> [commands]``.

Draft and target never talk to each other; every message passes through here. So the committed text, the epochs and the
statistics have one owner, and a test can replay every interleaving.

One round:

- *speculate*: a window of the draft arrives. It continues the **line**, the draft's own version of the answer.
- *verify*: while the line agrees with the committed text, the window goes to the target.
- *commit*: a verdict of the target arrives, and its tokens are committed. If the line still agrees, the draft is told
  how much of it is confirmed (`Advance`). If not, and the target continues with a window that was **prepared** for this
  verdict, that window is the line now, and the draft goes on from there (`Advance` with its name). Else the line is
  dead: the epoch rises, and the draft is sent back to the committed text (`Rollback`).

The rule that makes it lossless: *only the target's verdicts commit tokens*.

The `Mode` decides what an event leads to; `TRANSITIONS` at the end of this module is the table. Where the window policy
finds that drafting does not pay, the target decodes alone for a while. Then the draft writes one window, a *probe*,
while the target continues, so the comparison costs the target nothing. The first window is a probe too, unless the
policy is patient: a draft that is slow to start delays nobody. An answer that begins in a long rest is not opened at
the draft at all.

`Ledger` holds what is known of the session. `prefill` and `recovery` have the handlers of a prefill, and of actors that
are lost and come back.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pvlm.coordination import prefill, recovery
from pvlm.coordination.events import (
    Cancelled,
    Command,
    DraftBack,
    DraftGone,
    Emit,
    Event,
    Fail,
    Finish,
    Found,
    Judged,
    StopAfter,
    TargetBack,
    TargetGivenUp,
    TargetGone,
    ToTargetActor,
    WindowsPrepared,
    WindowTaken,
)
from pvlm.coordination.ledger import Ledger, Transition
from pvlm.coordination.modes import Mode, State
from pvlm.coordination.validation import outcomes_problem, verdict_problem, window_problem
from pvlm.errors import InvalidTransition
from pvlm.speculation.text import agreement
from pvlm_protocols.messages import (
    Close,
    DraftWindow,
    Failed,
    Opened,
    Outcome,
    PrefillDone,
    PrefillProgress,
    Prepared,
    PruneMask,
    SetMode,
    Verdict,
)

WITHOUT_DRAFT = 256
"""An answer that began without the draft gets it after so many tokens, if the draft's rest is over: joining costs the
draft its prefill, beside a target that is at work.
"""


class Coordinator(Ledger):
    """See the module."""

    def start(self) -> list[Command]:
        """Open the session at both actors."""
        if self.state is not State.NEW:
            raise InvalidTransition(f"session {self.session} was started twice (it is {self.state.name})")
        self.state = State.PREFILLING
        commands = self.openings.at_target(self.text, self.target_window, self.mode)
        if self.drafting and (opening := self.openings.draft) is not None:
            commands += self.openings.at_draft(opening, self.text, opening.window)
        return commands

    def handle(self, event: Event) -> list[Command]:
        """Take an event, enter the mode that `TRANSITIONS` names, and return the commands. Late and repeated events
        are dropped by rule, and are no error.
        """
        transition = TRANSITIONS.get((self.mode, type(event)))
        if transition is None or self.done or self.state is State.NEW:
            return []
        self.measurements.reconsider()
        self.measurements.outdate()
        before, target_open = self.mode, self.target_open
        self.mode, commands = transition(self, event)
        if self.mode.of_target != before.of_target and target_open and self.target_open:
            commands = [ToTargetActor(SetMode(session=self.session, mode=self.mode.of_target)), *commands]
        return commands

    def reconsider(self) -> None:
        """Choose the window again, from what the last event has taught.

        `handle` does so before it takes the next event. A caller that does it when the commands are out, and nobody
        waits, shortens the way from a verdict to the draft by up to a millisecond.
        """
        self.measurements.reconsider()

    # ---- speculate: a window of the draft -------------------------------------------------------------------------

    def _verify(self, window: DraftWindow) -> Transition:
        """TURNS, TOGETHER: the target verifies what continues the committed text."""
        if (refused := self._extend_line(window)) is not None:
            return refused
        if self.text.parted(window.start) or self.text.ahead < 0:
            return self.mode, [*self.roll_back(), self._drop(window)]
        if self.text.ahead == 0:  # the target has written all of it already
            return self.mode, [*self.advance(), *self._forward(window)]  # it has to know the window's name
        return self.mode, self._forward(window)

    def _prepare(self, prepared: Prepared) -> Transition:
        """TOGETHER: the target keeps windows that are prepared for its verdicts, unless they are late."""
        self.measurements.prepared(prepared)
        late = prepared.epoch != self.epoch or not self.drafting or not self.target_open
        if late or self.text.parted(0):
            return self.mode, [WindowsPrepared(prepared, kept=0)]
        if problem := outcomes_problem(prepared, self.openings.draft_sampling):
            return self._distrust_draft(problem)
        if not (kept := self.text.prepare(prepared.outcomes)):
            return self.mode, [WindowsPrepared(prepared, kept=0)]
        return self.mode, [ToTargetActor(prepared), WindowsPrepared(prepared, kept)]

    def _refuse(self, prepared: Prepared) -> Transition:
        """TURNS, ALONE, PROBING: prepared windows that were under way are not needed."""
        self.measurements.prepared(prepared)
        return self.mode, [WindowsPrepared(prepared, kept=0)]

    def _rest_on(self, window: DraftWindow) -> Transition:
        """ALONE: a window that was under way when the rest began is not needed."""
        return self._extend_line(window) or (self.mode, [self._drop(window)])

    def _compare(self, window: DraftWindow) -> Transition:
        """PROBING: compare the probe with what the target has written meanwhile. The part beyond that is verified if
        both work together from now on, or if there was nothing to compare.
        """
        if (refused := self._extend_line(window)) is not None:
            return refused
        parted = self.text.parted(window.start)
        ahead = not parted and self.text.ahead > 0
        agreed = agreement(window.tokens, self.committed[window.start :])
        self.measurements.probed(agreed, parted)
        self.measurements.outdate()
        self.measurements.reconsider()
        together = self.measurements.pays
        commands = self._forward(window) if ahead and (together or not agreed) else [self._drop(window)]
        if not self.measurements.baselined:  # ask again when the target has written a few tokens alone
            return Mode.ALONE, commands
        if not together:
            return self._begin_rest(commands)
        return self.paired, [*commands, *(self.advance() if ahead else self.roll_back())]

    def _extend_line(self, window: DraftWindow) -> Transition | None:
        """Append a window to the line. Returns a transition where the window is late or invalid."""
        self.measurements.drafted(window)
        late = window.epoch != self.epoch or window.start < len(self.text.line) or window.parent != self.text.last
        if late or not self.drafting or not self.target_open:
            return self.mode, [self._drop(window)]
        if problem := window_problem(window, len(self.text.line), self.openings.draft_sampling):
            mode, commands = self._distrust_draft(problem)
            return mode, [*commands, self._drop(window)]
        self.text.extend(window)
        self.measurements.continued(window)
        return None

    def _distrust_draft(self, problem: str) -> Transition:
        """Nothing that it writes can be trusted."""
        self.openings.draft = None
        close = self.to_draft(Close(session=self.session))
        mode, commands = self.lose_draft(f"it wrote nonsense: {problem}")
        return mode, [*close, *commands]

    def _forward(self, window: DraftWindow) -> list[Command]:
        self.measurements.sent(window)
        return [ToTargetActor(window), WindowTaken(window, sent=True)]

    def _drop(self, window: DraftWindow) -> Command:
        self.counts.dropped_windows += 1
        return WindowTaken(window, sent=False)

    # ---- commit: a verdict of the target --------------------------------------------------------------------------

    def _commit(self, verdict: Verdict) -> Transition:
        """Every mode: commit the tokens, then let draft and target continue as the mode says."""
        if verdict.start != len(self.committed) or not self.target_open:
            return self.mode, []
        if problem := verdict_problem(verdict, len(self.committed), self.epoch, self.openings.target.sampling):
            return self.end(State.FAILED, Fail("ProtocolError", f"its verdict makes no sense: {problem}", ""))
        self.committed.extend(verdict.tokens)
        self.measurements.judged(verdict, self.mode.of_target, waits=self.target_window.wait > 0)
        told: list[Command] = [Emit(verdict.tokens, verdict.accepted, verdict.rejected)] if verdict.tokens else []
        outcome = self.text.prepared_for(verdict) if verdict.rejected else None
        prepared: Found = ""
        if verdict.rejected and self.measurements.prepares:
            prepared = self.measurements.decided(verdict, outcome, self.text.prepared_at(verdict))
        told.append(Judged(verdict, outcome, prepared))
        if verdict.finish is not None:
            self.finish = verdict.finish
            return self.end(State.FINISHED, *told, Finish(verdict.finish))
        alone = self.mode.of_target == "alone"
        mode, commands = self._continue_alone(verdict) if alone else self._continue_together(verdict, outcome)
        return mode, [*commands, *told]  # the draft waits; the text can

    def _continue_together(self, verdict: Verdict, outcome: Outcome | None) -> Transition:
        """TURNS, TOGETHER: confirm the line, continue with a prepared window, or send the draft back; rest where
        drafting does not pay.
        """
        if not verdict.tokens:
            return self.mode, []
        if not self.measurements.pays:
            self.measurements.forget_rejection()
            return self._begin_rest([])
        self.rest.wrote_together(len(verdict.tokens))
        # A draft that takes turns waits for the target's token. One that writes on may have guessed that token, and
        # its next window will show it.
        mode = self.paired
        if outcome is not None:
            self.text.follow(outcome)
            return mode, self.advance(outcome.id)
        waits = mode is Mode.TURNS and self.text.ahead < 0
        if verdict.rejected or self.text.parted(verdict.start) or waits:
            return mode, self.roll_back()
        self.text.settle()
        return mode, self.advance()

    def _continue_alone(self, verdict: Verdict) -> Transition:
        """ALONE, PROBING: work together again if drafting has come to pay; else probe the draft after its rest."""
        self.measurements.forget_rejection()
        self.rest.wrote_alone(len(verdict.tokens))
        if self.held_back and self.rest.over and len(self.committed) >= WITHOUT_DRAFT:
            return Mode.PROBING, self.join_draft()
        if not self.drafting:
            return self.mode, []
        if (verdict.accepted or verdict.rejected) and self.measurements.pays:
            return self.paired, self.roll_back()
        again = self.measurements.pays and self.rest.may_end
        if self.mode is Mode.PROBING or not (self.rest.over or again):
            return self.mode, []
        self.rest.end()
        return Mode.PROBING, self.send_back(self.measurements.probe())

    def _begin_rest(self, commands: list[Command]) -> Transition:
        """The draft stops by itself, since nothing it writes is confirmed."""
        self.counts.rests += 1
        self.rest.begin(hopeless=self.measurements.hopeless)
        return Mode.ALONE, commands


def _on_stop_after(ledger: Ledger, stop: StopAfter) -> Transition:
    ledger.finish = "stop"
    del ledger.committed[stop.tokens :]
    return ledger.end(State.FINISHED, Finish("stop"))


def _on_cancelled(ledger: Ledger, _: Cancelled) -> Transition:
    return ledger.end(State.FAILED)


Handler = Callable[[Coordinator, Any], Transition]

_IN_EVERY_MODE: dict[type[Event], Handler] = {
    Verdict: Coordinator._commit,
    Opened: prefill.on_opened,
    PrefillProgress: prefill.on_prefill_progress,
    PruneMask: prefill.on_mask,
    PrefillDone: prefill.on_prefill_done,
    Failed: recovery.on_failed,
    DraftGone: recovery.on_draft_gone,
    DraftBack: recovery.on_draft_back,
    TargetGone: recovery.on_target_gone,
    TargetBack: recovery.on_target_back,
    TargetGivenUp: recovery.on_target_given_up,
    StopAfter: _on_stop_after,
    Cancelled: _on_cancelled,
}

TRANSITIONS: dict[tuple[Mode, type[Event]], Handler] = {
    (Mode.TURNS, DraftWindow): Coordinator._verify,
    (Mode.TOGETHER, DraftWindow): Coordinator._verify,
    (Mode.ALONE, DraftWindow): Coordinator._rest_on,
    (Mode.PROBING, DraftWindow): Coordinator._compare,
    (Mode.TURNS, Prepared): Coordinator._refuse,
    (Mode.TOGETHER, Prepared): Coordinator._prepare,
    (Mode.ALONE, Prepared): Coordinator._refuse,
    (Mode.PROBING, Prepared): Coordinator._refuse,
    **{(mode, event): handler for mode in Mode for event, handler in _IN_EVERY_MODE.items()},
}
"""The table: what handles an event in a mode. A handler returns the next mode and the commands."""
