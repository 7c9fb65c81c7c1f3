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
"""

from __future__ import annotations

from enum import Enum, auto

from pvlm.commands import (
    Cancelled,
    Command,
    DraftGone,
    Emit,
    Event,
    Fail,
    Finish,
    PrefillFinished,
    Progress,
    TargetGone,
    ToDraftActor,
    ToTargetActor,
)
from pvlm.counts import Counts
from pvlm.errors import InvalidTransition
from pvlm.speculation.gaps import Gaps
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

REST_TOKENS = 16
"""Tokens that the target first writes alone where a draft does not pay; doubled each time, up to `REST_TOKENS_MAX`."""
REST_TOKENS_MAX = 64
PROBE_TOKENS = 4
"""The least that a probe is long."""


class State(Enum):
    """Life of a session. NEW -> PREFILLING -> DECODING -> FINISHED; FAILED is reached from everywhere but FINISHED."""

    NEW = auto()
    PREFILLING = auto()
    DECODING = auto()
    FINISHED = auto()
    FAILED = auto()


class Coordinator:
    """See the module. ``with_draft`` False: the target decodes alone (`Schedule.alone`)."""

    def __init__(self, opening: Open, policy: WindowPolicy, draft_opening: Open | None = None) -> None:
        """``draft_opening``: what the draft is opened with (its frames may be of another size); None: no draft."""
        self.state = State.NEW
        self.committed: list[int] = list(opening.committed)
        self.epoch = 0
        self.counts = Counts()
        self.finish: FinishReason | None = None
        self.shared = False
        """Other sessions have turns at the same actors: what this one waits for says nothing of draft and target."""
        self._opening = opening
        self._draft_opening = draft_opening
        self._policy = policy
        self._draft = draft_opening is not None
        self._line: list[int] = list(opening.committed)
        self._told: Window = opening.window
        self._held_mask: PruneMask | None = None
        self._gaps = Gaps()
        self._rejected_s: float | None = None
        """When the last verdict rejected, until the draft's next window is there."""
        self._awaited = False
        """The last verdict rejected, and the target was told to wait for the next window."""
        starts_alone = draft_opening is not None and not opening.schedule.bonus and not policy.patient
        self._alone_until: int | None = 0 if starts_alone else None
        """While the target goes on alone: the answer length at which the draft is probed."""
        self._probing = starts_alone
        """While the target goes on alone: the draft's next window is compared with what the target has written."""
        self._rest_tokens = REST_TOKENS

    @property
    def session(self) -> int:
        return self._opening.session

    @property
    def with_draft(self) -> bool:
        return self._draft_opening is not None

    @property
    def done(self) -> bool:
        return self.state in (State.FINISHED, State.FAILED)

    def start(self) -> list[Command]:
        """Open the session at both actors."""
        if self.state is not State.NEW:
            raise InvalidTransition(f"session {self.session} was started twice (it is {self.state.name})")
        self.state = State.PREFILLING
        commands: list[Command] = [ToTargetActor(self._opening)]
        if self._alone_until is not None:
            commands.append(self._step(-1))
        if self._draft_opening is not None:
            commands.append(ToDraftActor(self._draft_opening))
        return commands

    def handle(self, event: Event) -> list[Command]:
        """Take one event in. Late and repeated events are dropped by rule and counted, never an error."""
        if self.done or self.state is State.NEW:
            return []
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
                self.counts.video_tokens = self.counts.kept_video_tokens = event.video_tokens
                return []
            case PrefillProgress(role="target"):
                return [Progress(event.fraction)]
            case Failed(role="target"):
                self.state = State.FAILED
                return [Fail(event.error, event.message, event.traceback), *self._closing()]
            case Failed(role="draft"):
                return self._on_draft_lost(DraftGone(f"{event.error}: {event.message}"))
            case DraftGone():
                return self._on_draft_lost(event)
            case Cancelled():
                self.state = State.FAILED
                return self._closing()
            case TargetGone():
                self.state = State.FAILED
                return [Fail("TargetLost", event.reason, ""), *self._closing()]
            case _:
                return []

    # ---- prefill --------------------------------------------------------------------------------------------------

    def _on_mask(self, mask: PruneMask) -> list[Command]:
        self.counts.kept_video_tokens = mask.kept
        if self._opening.schedule.overlap_prefill:
            return self._to_draft(mask)
        self._held_mask = mask
        return []

    def _on_prefill_done(self, done: PrefillDone) -> list[Command]:
        self.counts.prefill_ms[done.role] = done.prefill_ms
        if done.role == "draft" or self.state is not State.PREFILLING:
            return []
        self.state = State.DECODING
        commands: list[Command] = [PrefillFinished()]
        if self._held_mask is not None:
            commands += self._to_draft(self._held_mask)
            self._held_mask = None
        return commands

    # ---- decoding -------------------------------------------------------------------------------------------------

    def _on_window(self, window: DraftWindow) -> list[Command]:
        self.counts.drafted_tokens += len(window.tokens)
        if window.tokens and window.draft_ms > 0:
            self.counts.draft_token_ms.append(window.draft_ms / len(window.tokens))
            self._policy.observe_draft(window.draft_ms / len(window.tokens))
        if not self._draft or window.epoch != self.epoch or window.start != len(self._line):
            self.counts.dropped_windows += 1
            return []
        self._line.extend(window.tokens)
        if self._rejected_s is not None:
            began_s = window.ended_s - window.draft_ms / 1000
            if not self.shared:
                self._policy.observe_lag(max(0.0, began_s - self._rejected_s) * 1000)
            self._rejected_s = None
        if self._alone_until is not None:
            return self._on_window_while_alone(window)
        if self._parted(window.start):
            self.counts.dropped_windows += 1
            return self._roll_back()
        if len(self._line) <= len(self.committed):  # all of it is behind the committed text
            self.counts.dropped_windows += 1
            return self._roll_back() if len(self._line) < len(self.committed) else self._advance()
        return self._forward(window)

    def _forward(self, window: DraftWindow) -> list[Command]:
        self._gaps.sent(window)
        return [ToTargetActor(window)]

    def _on_verdict(self, verdict: Verdict) -> list[Command]:
        if verdict.start != len(self.committed):
            self.counts.dropped_verdicts += 1
            return []
        self.committed.extend(verdict.tokens)
        self._count(verdict)
        emit: list[Command] = [Emit(verdict.tokens, verdict.accepted, verdict.rejected)] if verdict.tokens else []
        if verdict.finish is not None:
            self.state = State.FINISHED
            self.finish = verdict.finish
            return [*emit, Finish(verdict.finish), *self._closing()]
        # The draft waits; the text can.
        return (self._go_on(verdict) if self._draft else []) + emit

    def _go_on(self, verdict: Verdict) -> list[Command]:
        """What the actors hear after a verdict."""
        if self._alone_until is not None:
            return self._on_verdict_while_alone(verdict)
        if not verdict.tokens:
            return []
        if not self._policy.choice().pays:
            return self._go_alone(verdict)
        # A draft that waits for the target's token (it may write one window only) is sent on at once; one that writes
        # on may have guessed that token, which its next window will show.
        behind = len(self.committed) > len(self._line)
        if verdict.rejected or self._parted(verdict.start) or (behind and self._opening.schedule.bonus):
            return self._roll_back()
        return self._advance()

    def _count(self, verdict: Verdict) -> None:
        counts = self.counts
        counts.accepted_tokens += verdict.accepted
        counts.rejected_tokens += verdict.rejected
        if verdict.accepted or verdict.rejected:
            self._policy.observe_tested(verdict.accepted, int(verdict.rejected))
        if verdict.window:
            counts.windows.append(verdict.window)
        if verdict.pass_tokens:
            counts.target_passes += 1
            counts.target_pass_ms.append(verdict.pass_ms)
            self._policy.observe_pass(verdict.pass_tokens, verdict.pass_ms)
            if (gap := self._gaps.passed(verdict)) is not None:
                counts.idle_ms.append(gap.ms)
                if verdict.window or not self._awaited:  # else it has waited in vain
                    counts.coordination_ms.append(gap.coordination_ms)
                if verdict.window and not self._awaited and not self.shared:
                    self._policy.observe_coordination(gap.coordination_ms)
        self._awaited = verdict.rejected and self._told.wait > 0
        if verdict.rejected:
            self._rejected_s = verdict.ended_s

    def _parted(self, start: int) -> bool:
        """Do line and committed text differ at or behind ``start``?"""
        end = min(len(self._line), len(self.committed))
        return self._line[start:end] != self.committed[start:end]

    def _roll_back(self) -> list[Command]:
        self.counts.rollbacks += 1
        return self._send_back(self._choose())

    def _send_back(self, window: Window) -> list[Command]:
        """Raise the epoch and send the draft to the committed text."""
        keep = 0
        while keep < min(len(self._line), len(self.committed)) and self._line[keep] == self.committed[keep]:
            keep += 1
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
        window = self._choose()
        length = min(len(self.committed), len(self._line))
        commands = self._set_window(window)
        return commands + self._to_draft(Advance(session=self.session, epoch=self.epoch, length=length, window=window))

    def _choose(self) -> Window:
        choice = self._policy.choice()
        return Window(gamma=choice.gamma, wait=choice.wait, patience_ms=choice.patience_ms, ahead=choice.ahead)

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
        self._alone_until = len(self.committed) + self._rest_tokens
        self._rest_tokens = min(2 * self._rest_tokens, REST_TOKENS_MAX)

    def _follow(self, verdict: Verdict) -> None:
        """Without a rollback: the target has raised its epoch at a rejection."""
        self.epoch += int(verdict.rejected)
        self._rejected_s = None

    def _on_verdict_while_alone(self, verdict: Verdict) -> list[Command]:
        assert self._alone_until is not None
        self._follow(verdict)
        if (verdict.accepted or verdict.rejected) and self._policy.choice().pays:
            return self._together(self._roll_back())
        if self._probing or len(self.committed) < self._alone_until:
            return []
        self._probing = True
        window = self._choose()
        return self._send_back(Window(gamma=max(window.gamma, PROBE_TOKENS)))

    def _on_window_while_alone(self, window: DraftWindow) -> list[Command]:
        """A probe is compared with what the target has written meanwhile. It is sent on, as far as it is ahead of that,
        if the two work together from now on, or if there was nothing to compare it with.
        """
        if not self._probing:
            self.counts.dropped_windows += 1
            return []
        self._probing = False
        parted = self._parted(window.start)
        ahead = not parted and len(self._line) > len(self.committed)
        agreed = 0
        for drafted, decided in zip(window.tokens, self.committed[window.start :], strict=False):
            if drafted != decided:
                break
            agreed += 1
        if agreed or parted:
            self._policy.observe_tested(agreed, int(parted))
        together = self._policy.choice().pays
        wanted = ahead and (together or not agreed)
        commands = self._forward(window) if wanted else []
        self.counts.dropped_windows += int(not wanted)
        if together:
            return [*commands, *self._together(self._advance() if ahead else self._roll_back())]
        self._rest()
        return commands

    def _together(self, commands: list[Command]) -> list[Command]:
        """Draft and target again; ``commands`` tell the draft."""
        self._alone_until, self._probing, self._rest_tokens = None, False, REST_TOKENS
        return [self._step(0), *commands]

    # ---- ends -----------------------------------------------------------------------------------------------------

    def _on_draft_lost(self, lost: DraftGone) -> list[Command]:
        """Go on without the draft: the text does not depend on it."""
        if not self._draft:
            return []
        self.counts.draft_lost = lost.reason
        commands = self._to_draft(Close(session=self.session))
        self._draft = False
        return [*commands, self._step(-1)]

    def _closing(self) -> list[Command]:
        return [ToTargetActor(Close(session=self.session)), *self._to_draft(Close(session=self.session))]

    def _step(self, count: int) -> Command:
        return ToTargetActor(Step(session=self.session, epoch=self.epoch, count=count))

    def _to_draft(self, message: ToDraft) -> list[Command]:
        return [ToDraftActor(message)] if self._draft else []
