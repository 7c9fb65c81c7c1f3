"""One session as a state machine without I/O: ``handle(event) -> [commands]``.

Draft and target never talk to each other; every message passes through here. So the committed text, the epochs and the
statistics have one owner, and a test can replay every interleaving.

One round:

- *speculate*: a window of the draft arrives. It continues the **line**, the draft's own version of the answer.
- *verify*: while the line agrees with the committed text, the window goes to the target.
- *commit*: a verdict of the target arrives, and its tokens are committed. If the line still agrees, the draft is told
  how much of it is confirmed (`Advance`). If not, the line is dead: the epoch rises, and the draft is sent back to the
  committed text (`Rollback`).

The rule that makes it lossless: *only the target's verdicts commit tokens*.

The `Mode` decides what an event leads to; `TRANSITIONS` at the end of this module is the table. Where the window policy
finds that drafting does not pay, the target decodes alone for a while. Then the draft writes one window, a *probe*,
while the target continues, so the comparison costs the target nothing. The first window is a probe too, unless the
policy is patient: a draft that is slow to start delays nobody.

A lost draft leaves the target alone. When it is back, its session is opened again after the committed text, and its
first window is a probe. A lost target stops the answer. When it is back, its session is opened again from the committed
tokens, and the draft is sent back to them. Each opening raises the epoch, so messages from before it do not count, and
no random draw is made twice.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pvlm.coordination.events import (
    Cancelled,
    Command,
    DraftBack,
    DraftGone,
    Emit,
    Event,
    Fail,
    Finish,
    Judged,
    PrefillFinished,
    Progress,
    StopAfter,
    TargetBack,
    TargetGivenUp,
    TargetGone,
    ToDraftActor,
    ToTargetActor,
    WindowTaken,
)
from pvlm.coordination.modes import Mode, Rest, State
from pvlm.coordination.openings import Openings
from pvlm.coordination.statistics import Counts, Measurements
from pvlm.coordination.text import Text
from pvlm.coordination.validation import verdict_problem, window_problem
from pvlm.errors import InvalidTransition
from pvlm.speculation.text import agreement
from pvlm.speculation.windows import WindowPolicy
from pvlm_protocols.messages import (
    Advance,
    Close,
    DraftWindow,
    Failed,
    FinishReason,
    Open,
    Opened,
    PrefillDone,
    PrefillProgress,
    PruneMask,
    Rollback,
    SetMode,
    SetWindow,
    ToDraft,
    Verdict,
    Window,
)

Transition = tuple[Mode, list[Command]]
"""The mode after an event, and the commands that answer it."""


class Coordinator:
    """See the module."""

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
        self._openings = Openings(opening, draft_opening)
        self._draft = draft_opening is not None and not draft_away
        self._target_window = opening.window
        self._rest = Rest()
        self.mode = self._first_mode()

    @property
    def session(self) -> int:
        return self._openings.target.session

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

    def start(self) -> list[Command]:
        """Open the session at both actors."""
        if self.state is not State.NEW:
            raise InvalidTransition(f"session {self.session} was started twice (it is {self.state.name})")
        self.state = State.PREFILLING
        commands = self._openings.at_target(self.text, self._target_window, self.mode)
        if self._draft and (opening := self._openings.draft) is not None:
            commands += self._openings.at_draft(opening, self.text, opening.window)
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
        before, target_open = self.mode, self._target_open
        self.mode, commands = transition(self, event)
        if self.mode.of_target != before.of_target and target_open and self._target_open:
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
            return self.mode, [*self._roll_back(), self._drop(window)]
        if self.text.ahead == 0:  # the target has written all of it already
            return self.mode, [*self._advance(), self._drop(window)]
        return self.mode, self._forward(window)

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
        if not together:
            return self._begin_rest(commands)
        self._rest.reset()
        return self._openings.paired, [*commands, *(self._advance() if ahead else self._roll_back())]

    def _extend_line(self, window: DraftWindow) -> Transition | None:
        """Append a window to the line. Returns a transition where the window is late or invalid."""
        self.measurements.drafted(window)
        late = window.epoch != self.epoch or window.start < len(self.text.line)
        if late or not self._draft or not self._target_open:
            return self.mode, [self._drop(window)]
        if problem := window_problem(window, len(self.text.line), self._openings.draft_sampling):
            self._openings.draft = None  # nothing it writes can be trusted
            close = self._to_draft(Close(session=self.session))
            mode, commands = self._lose_draft(f"it wrote nonsense: {problem}")
            return mode, [*close, *commands, self._drop(window)]
        self.text.line.extend(window.tokens)
        self.measurements.continued(window)
        return None

    def _forward(self, window: DraftWindow) -> list[Command]:
        self.measurements.sent(window)
        return [ToTargetActor(window), WindowTaken(window, sent=True)]

    def _drop(self, window: DraftWindow) -> Command:
        self.counts.dropped_windows += 1
        return WindowTaken(window, sent=False)

    # ---- commit: a verdict of the target --------------------------------------------------------------------------

    def _commit(self, verdict: Verdict) -> Transition:
        """Every mode: commit the tokens, then let draft and target continue as the mode says."""
        if verdict.start != len(self.committed) or not self._target_open:
            return self.mode, []
        if problem := verdict_problem(verdict, len(self.committed), self.epoch, self._openings.target.sampling):
            return self._end(State.FAILED, Fail("ProtocolError", f"its verdict makes no sense: {problem}", ""))
        self.committed.extend(verdict.tokens)
        self.measurements.judged(verdict, waits=self._target_window.wait > 0)
        told: list[Command] = [Emit(verdict.tokens, verdict.accepted, verdict.rejected)] if verdict.tokens else []
        told.append(Judged(verdict))
        if verdict.finish is not None:
            self.finish = verdict.finish
            return self._end(State.FINISHED, *told, Finish(verdict.finish))
        alone = self.mode.of_target == "alone"
        mode, commands = self._continue_alone(verdict) if alone else self._continue_together(verdict)
        return mode, [*commands, *told]  # the draft waits; the text can

    def _continue_together(self, verdict: Verdict) -> Transition:
        """TURNS, TOGETHER: confirm the line, or send the draft back; rest where drafting does not pay."""
        if not verdict.tokens:
            return self.mode, []
        if not self.measurements.pays:
            self._follow_epoch(verdict)
            return self._begin_rest([])
        # A draft that takes turns waits for the target's token. One that writes on may have guessed that token, and
        # its next window will show it.
        waits = self.mode is Mode.TURNS and self.text.ahead < 0
        if verdict.rejected or self.text.parted(verdict.start) or waits:
            return self.mode, self._roll_back()
        return self.mode, self._advance()

    def _continue_alone(self, verdict: Verdict) -> Transition:
        """ALONE, PROBING: work together again if drafting has come to pay; else probe the draft after its rest."""
        self._follow_epoch(verdict)
        if not self._draft:
            return self.mode, []
        if (verdict.accepted or verdict.rejected) and self.measurements.pays:
            self._rest.reset()
            return self._openings.paired, self._roll_back()
        if self.mode is Mode.PROBING or not self._rest.over(len(self.committed)):
            return self.mode, []
        return Mode.PROBING, self._send_back(self.measurements.probe())

    def _follow_epoch(self, verdict: Verdict) -> None:
        """The target raises its epoch at a rejection; no rollback follows here that would raise this one."""
        self.text.epoch = max(self.epoch, verdict.epoch + int(verdict.rejected))
        self.measurements.forget_rejection()

    def _begin_rest(self, commands: list[Command]) -> Transition:
        """The draft stops by itself, since nothing it writes is confirmed."""
        self.counts.rests += 1
        self._rest.begin(len(self.committed))
        return Mode.ALONE, commands

    # ---- what the draft is told -----------------------------------------------------------------------------------

    def _roll_back(self) -> list[Command]:
        self.counts.rollbacks += 1
        return self._send_back(self.measurements.window())

    def _send_back(self, window: Window) -> list[Command]:
        """Raise the epoch and send the draft to the committed text."""
        keep = self.text.restart()
        tokens = tuple(self.committed[keep:])
        rollback = Rollback(session=self.session, epoch=self.epoch, keep=keep, tokens=tokens, window=window)
        return [*self._set_window(window), *self._to_draft(rollback)]

    def _advance(self) -> list[Command]:
        window = self.measurements.window()
        length = min(len(self.committed), len(self.text.line))
        advance = Advance(session=self.session, epoch=self.epoch, length=length, window=window)
        return [*self._set_window(window), *self._to_draft(advance)]

    def _set_window(self, window: Window) -> list[Command]:
        """Tell the target, if what concerns it has changed."""
        told = self._target_window
        same = window.wait == told.wait and abs(window.patience_ms - told.patience_ms) <= 0.1 * told.patience_ms
        if self._openings.paired is Mode.TURNS or same or not self._target_open:
            return []
        self._target_window = window
        return [ToTargetActor(SetWindow(session=self.session, window=window))]

    def _to_draft(self, message: ToDraft) -> list[Command]:
        return [ToDraftActor(message)] if self._draft else []

    # ---- prefill --------------------------------------------------------------------------------------------------

    def _on_opened(self, opened: Opened) -> Transition:
        if opened.role == "target":
            self.counts.prompt_tokens = opened.prompt_tokens
            self.counts.video_tokens = opened.video_tokens
            if self._openings.mask is None:
                self.counts.kept_video_tokens = opened.video_tokens
        return self.mode, []

    def _on_prefill_progress(self, progress: PrefillProgress) -> Transition:
        return self.mode, [Progress(progress.fraction)] if progress.role == "target" else []

    def _on_mask(self, mask: PruneMask) -> Transition:
        if self._openings.mask is not None:  # from a target that was opened again
            return self.mode, []
        self._openings.mask = mask
        self.counts.kept_video_tokens = mask.kept
        return self.mode, self._to_draft(mask) if self._openings.target.schedule.overlap_prefill else []

    def _on_prefill_done(self, done: PrefillDone) -> Transition:
        self.counts.prefill_ms.setdefault(done.role, done.prefill_ms)
        if done.role == "draft" or self.state is not State.PREFILLING:
            return self.mode, []
        self.state = State.DECODING
        if self._openings.prefilled:
            return self.mode, []
        self._openings.prefilled = True
        held = None if self._openings.target.schedule.overlap_prefill else self._openings.mask
        return self.mode, [PrefillFinished(), *([] if held is None else self._to_draft(held))]

    # ---- actors that are lost, and come back ----------------------------------------------------------------------

    def _first_mode(self) -> Mode:
        """The mode at an opening of the target."""
        if not self._draft:
            return Mode.ALONE
        paired = self._openings.paired
        return paired if paired is Mode.TURNS or self.measurements.patient else Mode.PROBING

    @property
    def _target_open(self) -> bool:
        """Does the target hold the session?"""
        return self.state in (State.PREFILLING, State.DECODING)

    def _on_target_gone(self, _: TargetGone) -> Transition:
        self.state = State.RECOVERING
        return self.mode, []

    def _on_target_back(self, _: TargetBack) -> Transition:
        """Continue from the committed tokens."""
        if self.state is not State.RECOVERING:
            return self.mode, []
        self.counts.target_recoveries += 1
        self.measurements.interrupted()
        self.text.epoch += 1  # the lost target may have drawn in the next epoch already, and nobody has heard of it
        rollback = self._send_back(self.measurements.window())
        self._rest.reset()
        self.mode = self._first_mode()
        self.state = State.PREFILLING
        return self.mode, [*self._openings.at_target(self.text, self._target_window, self.mode), *rollback]

    def _on_target_given_up(self, event: TargetGivenUp) -> Transition:
        return self._end(State.FAILED, Fail("TargetLost", event.reason, event.traceback))

    def _on_failed(self, failed: Failed) -> Transition:
        """The actor has closed the session already."""
        if failed.role == "draft":
            self._openings.draft = None  # it would fail again
            return self._lose_draft(f"{failed.error}: {failed.message}")
        self.state = State.FAILED
        fail = Fail(failed.error, failed.message, failed.traceback)
        return self.mode, [fail, *self._to_draft(Close(session=self.session))]

    def _on_draft_gone(self, gone: DraftGone) -> Transition:
        return self._lose_draft(gone.reason)

    def _lose_draft(self, reason: str) -> Transition:
        """Continue without the draft: the text does not depend on it."""
        if not self._draft:
            return self.mode, []
        self.counts.draft_lost = reason
        self._draft = False
        self._rest.reset()
        return Mode.ALONE, []

    def _on_draft_back(self, _: DraftBack) -> Transition:
        """Let it join after the committed text; the target continues alone until the draft's first window arrives."""
        if self._draft or (opening := self._openings.draft) is None:
            return self.mode, []
        self._draft = True
        self.counts.draft_rejoins += 1
        self.text.restart()
        return Mode.PROBING, self._openings.at_draft(opening, self.text, self.measurements.probe())

    # ---- ends -----------------------------------------------------------------------------------------------------

    def _on_stop_after(self, stop: StopAfter) -> Transition:
        self.finish = "stop"
        del self.committed[stop.tokens :]
        return self._end(State.FINISHED, Finish("stop"))

    def _on_cancelled(self, _: Cancelled) -> Transition:
        return self._end(State.FAILED)

    def _end(self, state: State, *told: Command) -> Transition:
        close = Close(session=self.session)
        target: list[Command] = [ToTargetActor(close)] if self._target_open else []
        self.state = state
        return self.mode, [*told, *target, *self._to_draft(close)]


Handler = Callable[[Coordinator, Any], Transition]

_IN_EVERY_MODE: dict[type[Event], Handler] = {
    Verdict: Coordinator._commit,
    Opened: Coordinator._on_opened,
    PrefillProgress: Coordinator._on_prefill_progress,
    PruneMask: Coordinator._on_mask,
    PrefillDone: Coordinator._on_prefill_done,
    Failed: Coordinator._on_failed,
    DraftGone: Coordinator._on_draft_gone,
    DraftBack: Coordinator._on_draft_back,
    TargetGone: Coordinator._on_target_gone,
    TargetBack: Coordinator._on_target_back,
    TargetGivenUp: Coordinator._on_target_given_up,
    StopAfter: Coordinator._on_stop_after,
    Cancelled: Coordinator._on_cancelled,
}

TRANSITIONS: dict[tuple[Mode, type[Event]], Handler] = {
    (Mode.TURNS, DraftWindow): Coordinator._verify,
    (Mode.TOGETHER, DraftWindow): Coordinator._verify,
    (Mode.ALONE, DraftWindow): Coordinator._rest_on,
    (Mode.PROBING, DraftWindow): Coordinator._compare,
    **{(mode, event): handler for mode in Mode for event, handler in _IN_EVERY_MODE.items()},
}
"""The table: what handles an event in a mode. A handler returns the next mode and the commands."""
