"""What a coordinator does with the actors' reports of a prefill. Each handler is one of `TRANSITIONS`."""

from __future__ import annotations

from pvlm.coordination.events import PrefillFinished, Progress
from pvlm.coordination.ledger import Ledger, Transition
from pvlm.coordination.modes import State
from pvlm_protocols.messages import Opened, PrefillDone, PrefillProgress, PruneMask


def on_opened(ledger: Ledger, opened: Opened) -> Transition:
    if opened.role == "target":
        ledger.counts.prompt_tokens = opened.prompt_tokens
        ledger.counts.video_tokens = opened.video_tokens
        if not ledger.openings.prefilled:
            ledger.counts.cached_tokens = opened.cached_tokens
        if ledger.openings.mask is None:
            ledger.counts.kept_video_tokens = opened.video_tokens
    return ledger.mode, []


def on_prefill_progress(ledger: Ledger, progress: PrefillProgress) -> Transition:
    return ledger.mode, [Progress(progress.fraction)] if progress.role == "target" else []


def on_mask(ledger: Ledger, mask: PruneMask) -> Transition:
    if ledger.openings.mask is not None:  # from a target that was opened again
        return ledger.mode, []
    ledger.openings.mask = mask
    ledger.counts.kept_video_tokens = mask.kept
    return ledger.mode, ledger.to_draft(mask) if ledger.openings.target.schedule.overlap_prefill else []


def on_prefill_done(ledger: Ledger, done: PrefillDone) -> Transition:
    ledger.counts.prefill_ms.setdefault(done.role, done.prefill_ms)
    if done.role == "draft" or ledger.state is not State.PREFILLING:
        return ledger.mode, []
    ledger.state = State.DECODING
    if ledger.openings.prefilled:
        return ledger.mode, []
    ledger.openings.prefilled = True
    held = None if ledger.openings.target.schedule.overlap_prefill else ledger.openings.mask
    return ledger.mode, [PrefillFinished(), *([] if held is None else ledger.to_draft(held))]
