"""One session as a state machine without I/O: ``handle(event) -> [commands]``.

Draft and target never speak to each other; everything goes through here, so the committed text, the epochs and the
statistics have one owner, and every interleaving can be replayed in a test.

The rule that makes it lossless is short: *only the target's verdicts commit tokens*. What the draft wrote is a
**line**, the committed prefix as of the last rollback and the draft's windows behind it. As long as the committed
text agrees with the line, windows are forwarded and the draft is told how far it is confirmed. Where they part, the
line is dead: the epoch is raised, and the draft is sent back to the committed text.

Where the window policy says that a draft does not pay, the target goes on *alone* for a while. Then the draft is asked
for one window, a *probe*, while the target goes on: comparing the two costs the target nothing. The draft's first
window is a probe too, so a draft that is slow to start holds nobody up; only a fixed window is waited for.

A draft that is gone leaves the target alone; when it is back its session is opened anew behind the committed text, and
its first window is a probe. A target that is gone stops everything; when it is back its session is opened anew from the
committed tokens, and the draft is sent back to them. Each opening raises the epoch, so nothing that was under way
counts, and no random draw is made twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum, auto

import msgspec

from pvlm.coordination.events import (
    Cancelled,
    Command,
    DraftBack,
    DraftGone,
    Emit,
    Event,
    Fail,
    Finish,
    PrefillFinished,
    Progress,
    StopAfter,
    TargetBack,
    TargetGivenUp,
    TargetGone,
    ToDraftActor,
    ToTargetActor,
)
from pvlm.coordination.measurement import Measuring
from pvlm.coordination.rest import Resting
from pvlm.coordination.validation import verdict_problem, window_problem
from pvlm.errors import InvalidTransition
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
    SetWindow,
    Step,
    ToDraft,
    Verdict,
    Window,
)


class State(Enum):
    """Life of a session. NEW -> PREFILLING -> DECODING -> FINISHED; while the target is away RECOVERING, and then
    PREFILLING again; FAILED is reached from everywhere but FINISHED.
    """

    NEW = auto()
    PREFILLING = auto()
    DECODING = auto()
    RECOVERING = auto()
    FINISHED = auto()
    FAILED = auto()


class Coordinator:
    """See the module."""

    def __init__(
        self, opening: Open, policy: WindowPolicy, draft_opening: Open | None = None, draft_away: str = ""
    ) -> None:
        """``draft_opening``: what the draft is opened with (its frames may be of another size); None: no draft.
        ``draft_away``: why there is no draft just now; `DraftBack` tells when there is.
        """
        self.state = State.NEW
        self.committed: list[int] = list(opening.committed)
        self.epoch = opening.epoch
        self.measuring = Measuring(policy)
        self.counts = self.measuring.counts
        self.counts.draft_lost = draft_away
        self.finish: FinishReason | None = None
        self._opening = opening
        self._draft_opening = draft_opening
        self._learned = False
        self._draft = draft_opening is not None and not draft_away
        self._line: list[int] = list(opening.committed)
        self._told: Window = opening.window
        self._mask: PruneMask | None = None
        self._prefilled = False
        self._resting = Resting()

    @property
    def session(self) -> int:
        return self._opening.session

    @property
    def done(self) -> bool:
        return self.state in (State.FINISHED, State.FAILED)

    def start(self) -> list[Command]:
        """Open the session at both actors."""
        if self.state is not State.NEW:
            raise InvalidTransition(f"session {self.session} was started twice (it is {self.state.name})")
        self.state = State.PREFILLING
        commands = self._open_target(self._opening)
        if self._draft and self._draft_opening is not None:
            commands.append(ToDraftActor(self._draft_opening))
        return commands

    def handle(self, event: Event) -> list[Command]:
        """Take one event in. Late and repeated events are dropped by rule and counted, never an error."""
        if self.done or self.state is State.NEW:
            return []
        self.reconsider()
        self._learned = True
        match event:
            case Verdict():
                return self._on_verdict(event)
            case DraftWindow():
                return self._on_window(event)
            case PruneMask():
                return self._on_mask(event)
            case PrefillDone():
                return self._on_prefill_done(event)
            case Opened(role="target"):
                self.counts.prompt_tokens = event.prompt_tokens
                self.counts.video_tokens = event.video_tokens
                if self._mask is None:
                    self.counts.kept_video_tokens = event.video_tokens
                return []
            case PrefillProgress(role="target"):
                return [Progress(event.fraction)]
            case Failed(role="target"):
                self.state = State.FAILED
                return [Fail(event.error, event.message, event.traceback), *self._closing()]
            case Failed(role="draft"):
                self._draft_opening = None  # it would fail again
                return self._on_draft_gone(f"{event.error}: {event.message}")
            case DraftGone():
                return self._on_draft_gone(event.reason)
            case DraftBack():
                return self._on_draft_back()
            case TargetGone():
                self.state = State.RECOVERING
                return []
            case TargetBack():
                return self._on_target_back()
            case TargetGivenUp():
                self.state = State.FAILED
                return [Fail("TargetLost", event.reason, event.traceback), *self._closing()]
            case StopAfter(tokens):
                self.state = State.FINISHED
                self.finish = "stop"
                del self.committed[tokens:]
                return [Finish("stop"), *self._closing()]
            case Cancelled():
                self.state = State.FAILED
                return self._closing()
            case _:
                return []

    def reconsider(self) -> None:
        """Choose the window anew, by what the last event has taught.

        `handle` does so before it looks at the next event. Who calls this when the commands are out, and nobody waits,
        takes the time for it (up to a millisecond) off the way from a verdict to the draft.
        """
        if self._learned:
            self._learned = False
            self.measuring.reconsider()

    # ---- prefill --------------------------------------------------------------------------------------------------

    def _on_mask(self, mask: PruneMask) -> list[Command]:
        if self._mask is not None:  # from a target that was opened again
            return []
        self._mask = mask
        self.counts.kept_video_tokens = mask.kept
        return self._to_draft(mask) if self._opening.schedule.overlap_prefill else []

    def _on_prefill_done(self, done: PrefillDone) -> list[Command]:
        self.counts.prefill_ms.setdefault(done.role, done.prefill_ms)
        if done.role == "draft" or self.state is not State.PREFILLING:
            return []
        self.state = State.DECODING
        if self._prefilled:
            return []
        self._prefilled = True
        held = None if self._opening.schedule.overlap_prefill else self._mask
        return [PrefillFinished(), *([] if held is None else self._to_draft(held))]

    # ---- decoding -------------------------------------------------------------------------------------------------

    def _on_window(self, window: DraftWindow) -> list[Command]:
        self.measuring.drafted(window)
        if not self._draft or window.epoch != self.epoch or window.start < len(self._line):
            self.counts.dropped_windows += 1
            return []
        sampling = self._opening.sampling if self._draft_opening is None else self._draft_opening.sampling
        if problem := window_problem(window, len(self._line), sampling):
            self._draft_opening = None  # nothing it writes can be trusted
            return self._on_draft_gone(f"it wrote nonsense: {problem}")
        self._line.extend(window.tokens)
        self.measuring.continued(window)
        if self._resting.alone:
            return self._on_window_while_alone(window)
        if self._parted(window.start):
            self.counts.dropped_windows += 1
            return self._roll_back()
        if len(self._line) <= len(self.committed):  # all of it is behind the committed text
            self.counts.dropped_windows += 1
            return self._roll_back() if len(self._line) < len(self.committed) else self._advance()
        return self._forward(window)

    def _forward(self, window: DraftWindow) -> list[Command]:
        self.measuring.forwarded(window)
        return [ToTargetActor(window)]

    def _on_verdict(self, verdict: Verdict) -> list[Command]:
        if verdict.start != len(self.committed) or self.state is State.RECOVERING:
            self.counts.dropped_verdicts += 1
            return []
        if problem := verdict_problem(verdict, len(self.committed), self.epoch, self._opening.sampling):
            self.state = State.FAILED
            return [Fail("ProtocolError", f"its verdict makes no sense: {problem}", ""), *self._closing()]
        self.committed.extend(verdict.tokens)
        self.measuring.judged(verdict, waits=self._told.wait > 0)
        emit: list[Command] = [Emit(verdict.tokens, verdict.accepted, verdict.rejected)] if verdict.tokens else []
        if verdict.finish is not None:
            self.state = State.FINISHED
            self.finish = verdict.finish
            return [*emit, Finish(verdict.finish), *self._closing()]
        if not self._draft:
            self.epoch = max(self.epoch, verdict.epoch + int(verdict.rejected))
            return emit
        return self._go_on(verdict) + emit  # the draft waits; the text can

    def _go_on(self, verdict: Verdict) -> list[Command]:
        """What the actors hear after a verdict."""
        if self._resting.alone:
            return self._on_verdict_while_alone(verdict)
        if not verdict.tokens:
            return []
        if not self.measuring.pays:
            return self._go_alone(verdict)
        # A draft that waits for the target's token (it may write one window only) is sent on at once; one that writes
        # on may have guessed that token, which its next window will show.
        behind = len(self.committed) > len(self._line)
        if verdict.rejected or self._parted(verdict.start) or (behind and self._opening.schedule.bonus):
            return self._roll_back()
        return self._advance()

    def _parted(self, start: int) -> bool:
        """Do line and committed text differ at or behind ``start``?"""
        end = min(len(self._line), len(self.committed))
        return self._line[start:end] != self.committed[start:end]

    def _roll_back(self) -> list[Command]:
        self.counts.rollbacks += 1
        return self._send_back(self.measuring.window())

    def _send_back(self, window: Window) -> list[Command]:
        """Raise the epoch and send the draft to the committed text."""
        keep = _agreement(self._line, self.committed)
        self.epoch += 1
        self._line = list(self.committed)
        commands = self._set_window(window)
        return commands + self._to_draft(
            Rollback(
                session=self.session,
                epoch=self.epoch,
                keep=keep,
                tokens=tuple(self.committed[keep:]),
                window=window,
            )
        )

    def _advance(self) -> list[Command]:
        window = self.measuring.window()
        length = min(len(self.committed), len(self._line))
        commands = self._set_window(window)
        return commands + self._to_draft(Advance(session=self.session, epoch=self.epoch, length=length, window=window))

    def _set_window(self, window: Window) -> list[Command]:
        """Tell the target, if what concerns it has changed."""
        told = self._told
        same = window.wait == told.wait and abs(window.patience_ms - told.patience_ms) <= 0.1 * told.patience_ms
        if self._opening.schedule.bonus or same:
            return []
        self._told = window
        return [ToTargetActor(SetWindow(session=self.session, window=window))]

    # ---- the target alone -----------------------------------------------------------------------------------------

    def _go_alone(self, verdict: Verdict) -> list[Command]:
        """Tell the target to go on by itself; the draft stops by itself, since nothing it writes is confirmed."""
        self._follow(verdict)
        self._rest()
        return [self._step(-1)]

    def _rest(self) -> None:
        self.counts.rests += 1
        self._resting.rest(len(self.committed))

    def _follow(self, verdict: Verdict) -> None:
        """Without a rollback: the target has raised its epoch at a rejection."""
        self.epoch += int(verdict.rejected)
        self.measuring.forget_rejection()

    def _on_verdict_while_alone(self, verdict: Verdict) -> list[Command]:
        self._follow(verdict)
        if (verdict.accepted or verdict.rejected) and self.measuring.pays:
            return self._together(self._roll_back())
        if not self._resting.over(len(self.committed)):
            return []
        self._resting.probe()
        return self._send_back(self.measuring.probe())

    def _on_window_while_alone(self, window: DraftWindow) -> list[Command]:
        """A probe is compared with what the target has written meanwhile. It is sent on, as far as it is ahead of that,
        if the two work together from now on, or if there was nothing to compare it with.
        """
        if not self._resting.probing:
            self.counts.dropped_windows += 1
            return []
        self._resting.probing = False
        parted = self._parted(window.start)
        ahead = not parted and len(self._line) > len(self.committed)
        agreed = _agreement(window.tokens, self.committed[window.start :])
        self.measuring.probed(agreed, parted)
        self.measuring.reconsider()
        together = self.measuring.pays
        wanted = ahead and (together or not agreed)
        commands = self._forward(window) if wanted else []
        self.counts.dropped_windows += int(not wanted)
        if together:
            return [*commands, *self._together(self._advance() if ahead else self._roll_back())]
        self._rest()
        return commands

    def _together(self, commands: list[Command]) -> list[Command]:
        """Draft and target again; ``commands`` tell the draft."""
        self._resting.end()
        return [self._step(0), *commands]

    # ---- actors that are lost, and come back ----------------------------------------------------------------------

    def _open_target(self, opening: Open) -> list[Command]:
        """Without a draft it goes on alone; where its first window is not waited for, until that is there."""
        self._resting.end()
        if self._draft and not opening.schedule.bonus and not self.measuring.patient:
            self._resting.probe()
        alone = self._resting.alone or not self._draft
        return [ToTargetActor(opening), *([self._step(-1)] if alone else [])]

    def _on_target_back(self) -> list[Command]:
        """Go on from the committed tokens."""
        if self.state is not State.RECOVERING:
            return []
        self.state = State.PREFILLING
        self.counts.target_recoveries += 1
        self.measuring.interrupted()
        if self._draft:
            to_draft = self._send_back(self.measuring.window())
        else:
            self.epoch, to_draft = self.epoch + 1, []
        opening = msgspec.structs.replace(
            self._opening, committed=tuple(self.committed), epoch=self.epoch, window=self._told
        )
        return [*self._open_target(opening), *to_draft]

    def _on_draft_gone(self, reason: str) -> list[Command]:
        """Go on without the draft: the text does not depend on it."""
        if not self._draft:
            return []
        self.counts.draft_lost = reason
        commands = self._to_draft(Close(session=self.session))
        self._draft = False
        self._resting.end()
        return [*commands, self._step(-1)]

    def _on_draft_back(self) -> list[Command]:
        """Let it join behind what is committed; the target goes on alone until its first window is there."""
        if self._draft or self._draft_opening is None:
            return []
        self._draft = True
        self.counts.draft_rejoins += 1
        self.epoch += 1
        self._line = list(self.committed)
        self._resting.probe()
        opening = msgspec.structs.replace(
            self._draft_opening, committed=tuple(self.committed), epoch=self.epoch, window=self.measuring.probe()
        )
        allowed = self._prefilled or self._opening.schedule.overlap_prefill
        mask = self._to_draft(self._mask) if self._mask is not None and allowed else []
        return [ToDraftActor(opening), *mask]

    # ---- ends -----------------------------------------------------------------------------------------------------

    def _closing(self) -> list[Command]:
        return [ToTargetActor(Close(session=self.session)), *self._to_draft(Close(session=self.session))]

    def _step(self, count: int) -> Command:
        return ToTargetActor(Step(session=self.session, epoch=self.epoch, count=count))

    def _to_draft(self, message: ToDraft) -> list[Command]:
        return [ToDraftActor(message)] if self._draft else []


def _agreement(drafted: Sequence[int], decided: Sequence[int]) -> int:
    """How many tokens at their beginning are the same."""
    pairs = zip(drafted, decided, strict=False)
    return next((index for index, (a, b) in enumerate(pairs) if a != b), min(len(drafted), len(decided)))
