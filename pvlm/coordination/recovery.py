"""What a coordinator does when an actor fails, is lost, or is back. Each handler is one of `TRANSITIONS`.

A lost draft leaves the target alone. When it is back, its session is opened again after the committed text, and its
first window is a probe. A lost target stops the answer. When it is back, its session is opened again from the committed
tokens, and the draft is sent back to them. Each opening raises the epoch, so messages from before it do not count, and
no random draw is made twice.
"""

from __future__ import annotations

from pvlm.coordination.events import DraftBack, DraftGone, Fail, TargetBack, TargetGivenUp, TargetGone
from pvlm.coordination.ledger import Ledger, Transition
from pvlm.coordination.modes import Mode, State
from pvlm_protocols.messages import Close, Failed


def on_target_gone(ledger: Ledger, _: TargetGone) -> Transition:
    ledger.state = State.RECOVERING
    return ledger.mode, []


def on_target_back(ledger: Ledger, back: TargetBack) -> Transition:
    """Continue from the committed tokens."""
    if ledger.state is not State.RECOVERING:
        return ledger.mode, []
    ledger.counts.target_recoveries += 1
    ledger.measurements.interrupted()
    ledger.text.epoch += 1  # the lost target may have drawn in the next epoch already, and nobody has heard of it
    rollback = ledger.send_back(ledger.measurements.window())
    ledger.mode = ledger.first_mode()
    ledger.state = State.PREFILLING
    openings = ledger.openings.at_target(ledger.text, ledger.target_window, ledger.mode, back.shares)
    return ledger.mode, [*openings, *rollback]


def on_target_given_up(ledger: Ledger, event: TargetGivenUp) -> Transition:
    return ledger.end(State.FAILED, Fail("TargetLost", event.reason, event.traceback))


def on_failed(ledger: Ledger, failed: Failed) -> Transition:
    """The actor has closed the session already."""
    if failed.role == "draft":
        ledger.openings.draft = None  # it would fail again
        return ledger.lose_draft(f"{failed.error}: {failed.message}")
    ledger.state = State.FAILED
    fail = Fail(failed.error, failed.message, failed.traceback)
    return ledger.mode, [fail, *ledger.to_draft(Close(session=ledger.session))]


def on_draft_gone(ledger: Ledger, gone: DraftGone) -> Transition:
    return ledger.lose_draft(gone.reason)


def on_draft_back(ledger: Ledger, back: DraftBack) -> Transition:
    """Let it join after the committed text; the target continues alone until the draft's first window arrives."""
    if ledger.drafting or ledger.held_back or ledger.openings.draft is None:
        return ledger.mode, []
    ledger.counts.draft_rejoins += 1
    return Mode.PROBING, ledger.join_draft(back.shares)
