"""The target actor: decides every token of the answer."""

from __future__ import annotations

import time
from collections import deque

import torch

from pvlm.actors.actor import Actor, ActorSession, agreement, milliseconds_since
from pvlm.speculation.coupling import Drafted, coupling_for
from pvlm.speculation.masks import pack_mask
from pvlm.speculation.proposals import InvalidProposal, unstack_proposals
from pvlm.speculation.pruning import default_early_layer, kept_count, load_pruner
from pvlm_protocols.backend import EarlyStates, Session
from pvlm_protocols.messages import (
    DraftWindow,
    FinishReason,
    Open,
    PrefillDone,
    PruneMask,
    Resume,
    SessionMessage,
    SetWindow,
    Step,
    Verdict,
)


class TargetActor(Actor):
    """See the module."""

    role = "target"

    def new_session(self, opening: Open) -> ActorSession:
        return TargetSession(self, opening)


class TargetSession(ActorSession):
    """``committed`` is the answer so far. The cache covers it but for at most one *pending* token, its last.

    - *holding* (``_logits`` is set): nothing is pending, and the logits of the next position are at hand. They settle
      the first drafted token without a pass; without a drafted token, a step alone draws from them.
    - *pending* (``_logits`` is None): a pass over ``[pending, x1 ... xk]`` settles the drafted tokens x1 to xk.

    A window's first token may come ahead of the rest (``_more``): it is settled if that needs no pass, and the pass
    waits for the rest.

    Each position is drawn once: a drafted token that meets a committed one is compared with it, never judged again.
    """

    def __init__(self, actor: Actor, opening: Open) -> None:
        super().__init__(actor, opening)
        self.coupling = coupling_for(opening.sampling, session=opening.session)
        self.committed = list(opening.committed)
        self.epoch = opening.epoch
        self.window = opening.window
        self.finished = False
        self._prompt_cached = False
        self._prefilled = False
        """The prompt and all committed tokens but the pending one are in the cache."""
        self._logits: torch.Tensor | None = None
        self._queue: deque[Drafted] = deque()
        self._more = False
        self._steps = self._first_steps()
        self._wants_window = False
        self._idle_since = time.monotonic()

    def _first_steps(self) -> int:
        """Without an overlapped prefill no drafted token can wait yet: plain speculative decoding draws the first."""
        schedule = self.opening.schedule
        return -1 if schedule.alone else int(schedule.bonus and not schedule.overlap_prefill)

    # ---- messages -------------------------------------------------------------------------------------------------

    def handle(self, message: SessionMessage) -> None:
        match message:
            case DraftWindow():
                self._take_window(message)
            case Step():
                self._steps = message.count
            case SetWindow():
                self.window = message.window

    def _take_window(self, window: DraftWindow) -> None:
        """Queue what is new in a window; a window that contradicts the committed text ends its epoch."""
        if window.epoch < self.epoch:
            return
        if window.epoch > self.epoch:
            self.epoch = window.epoch
            self._drop_queue()
        if window.start > self._reach():
            return
        self._more = window.more
        for index, drafted in enumerate(_unpack(window)):
            position = window.start + index
            if position < len(self.committed):
                if self.committed[position] != drafted.token:
                    self.epoch = window.epoch + 1
                    self._drop_queue()
                    return
            elif position == self._reach() and position < self.opening.sampling.max_tokens:
                self._queue.append(drafted)

    def resumable(self) -> bool:
        return self._prompt_cached

    def resume(self, message: Resume) -> None:
        assert self.model is not None
        keep = min(self.model.length, agreement(self.committed, message.committed), len(message.committed) - 1)
        self.model.truncate(keep)
        self.committed = list(message.committed)
        self.epoch = message.epoch
        self.window = message.window
        self.finished = self._prefilled = self._wants_window = False
        self._logits = None
        self._steps = self._first_steps()
        self._drop_queue()

    def _drop_queue(self) -> None:
        self._queue.clear()
        self._more = False

    def _reach(self) -> int:
        """Answer tokens that are committed or wait for their verdict."""
        return len(self.committed) + len(self._queue)

    # ---- work -----------------------------------------------------------------------------------------------------

    def ready(self) -> bool:
        if self.model is None or not self._prefilled:
            return True
        if self.finished:
            return False
        if self._steps != 0 or (self._queue and not self._more):
            return True
        if self._logits is not None:
            return bool(self._queue)
        return not self._waiting()

    def urgent(self) -> bool:
        """A step alone, while the draft writes, settles one token: a pass over another session's window settles more,
        and may last until the window is there.
        """
        return self._steps != 0 or bool(self._queue) or not self._prefilled

    def patience_s(self) -> float | None:
        if self.finished or not self._prefilled or self._logits is not None or not self._wants_window:
            return None
        if self.opening.schedule.bonus or self._rest_follows():
            return None
        return max(0.0, self.window.patience_ms / 1000 - (time.monotonic() - self._idle_since))

    def _waiting(self) -> bool:
        """Pending, and a window (or the rest of one) is worth waiting for."""
        patience = self.patience_s()
        return self._wants_window and (patience is None or patience > 0)

    def _rest_follows(self) -> bool:
        """A window's first token is settled, and the draft is writing the others."""
        return self._more and not self._queue

    def work(self) -> None:
        if self.model is None:
            model = self.open_model()
            pruning = self.opening.pruning
            if not self._prunes(model) or not load_pruner(pruning.method).needs_states:
                self._publish_mask(model, None)
        elif not self._prefilled:
            self._prefill(self.model)
        else:
            self._decode(self.model)

    def _prunes(self, model: Session) -> bool:
        pruning = self.opening.pruning
        return not self.opening.schedule.alone and kept_count(model.video_tokens, pruning.ratio) < model.video_tokens

    def _publish_mask(self, model: Session, states: EarlyStates | None) -> None:
        if self.opening.schedule.alone:
            return
        pruning = self.opening.pruning
        videos = model.video_tokens
        kept = videos
        bits = b""
        if self._prunes(model):
            kept = kept_count(videos, pruning.ratio)
            bits = pack_mask(load_pruner(pruning.method).select(videos, kept, states, pruning.seed).numpy())
        self.post(
            PruneMask(
                session=self.id,
                bits=bits,
                video_tokens=videos,
                kept=kept,
                method=pruning.method if kept < videos else "none",
                ratio=pruning.ratio if kept < videos else 0.0,
            )
        )

    def _prefill(self, model: Session) -> None:
        """Bring the prompt and the committed tokens into the cache, as far as they are not there."""
        pruning = self.opening.pruning
        layers = self.actor.backend.info.layers
        done = 0

        def on_progress() -> None:
            nonlocal done
            done += 1
            self.actor.tick_prefill(self, done / layers)

        pruner = load_pruner(pruning.method)
        wants_states = self._prunes(model) and pruner.needs_states
        started = time.monotonic()
        if not self._prompt_cached:
            self._logits = model.prefill(
                early_layer=(pruning.early_layer or default_early_layer(layers)) if wants_states else None,
                on_early_layer=(lambda states: self._publish_mask(model, states)) if wants_states else None,
                early_attention=wants_states and pruner.needs_attention,
                on_progress=on_progress,
            )
            self._prompt_cached = True
        if missing := self.committed[model.length :]:
            self._logits = model.extend(missing, on_progress=lambda: self.actor.tick(self))[-1]
        self._prefilled = True
        self._idle_since = time.monotonic()
        self.post(
            PrefillDone(
                session=self.id,
                role="target",
                prompt_tokens=model.prompt_tokens,
                prefill_ms=milliseconds_since(started),
                ended_s=self._idle_since,
            )
        )

    def _decode(self, model: Session) -> None:
        """Settle what can be settled with at most one pass, and tell the coordinator."""
        start, accepted, rejected = len(self.committed), 0, False
        window = len(self._queue)
        pass_tokens, pass_ms = 0, 0.0
        if self._logits is not None:
            accepted, rejected = self._settle_held(self._logits)
        # A token that was settled without a pass is now pending, and its pass takes in the rest of the window, once
        # that is there; but a correction, or a token drawn alone, is told first.
        drawn_alone = len(self.committed) > start and not accepted
        await_rest = accepted > 0 and self._rest_follows() and self._steps == 0
        if self._logits is None and not (rejected or drawn_alone or await_rest or self.finished):
            started = time.monotonic()
            pass_tokens = 1 + len(self._queue)
            accepted_in_pass, rejected = self._settle_by_pass(model)
            accepted += accepted_in_pass
            pass_ms = milliseconds_since(started)
        self._wants_window = self.opening.schedule.bonus or self._rest_follows() or (rejected and self.window.wait > 0)
        self._idle_since = time.monotonic()
        self.post(
            Verdict(
                session=self.id,
                epoch=self.epoch,
                start=start,
                tokens=tuple(self.committed[start:]),
                accepted=accepted,
                rejected=rejected,
                window=window,
                pass_tokens=pass_tokens,
                pass_ms=pass_ms,
                ended_s=self._idle_since,
                finish=self._finish_reason(),
            )
        )
        if rejected:
            self.epoch += 1

    def _settle_held(self, logits: torch.Tensor) -> tuple[int, bool]:
        """Holding: settle one token. Returns how many drafted tokens were accepted, and whether one was rejected."""
        self._logits = None
        position = len(self.committed)
        if not self._queue:
            self._draw_alone(logits)
            return 0, False
        drafted = self._queue.popleft()
        accepted, token = self.coupling.judge(
            logits, drafted.token, drafted.proposal, position=position, epoch=self.epoch
        )
        self._commit(token)
        if not accepted:
            self._drop_queue()
        return int(accepted), not accepted

    def _settle_by_pass(self, model: Session) -> tuple[int, bool]:
        """Pending: one pass over the pending token and all drafted ones. Returns as `_settle_held`."""
        drafted = list(self._queue)
        self._queue.clear()
        tokens = [*self.committed[model.length :], *(d.token for d in drafted)]
        rows = model.extend(tokens, on_progress=lambda: self.actor.tick(self))
        accepted, correction = self.coupling.judge_window(
            rows,
            [d.token for d in drafted],
            [d.proposal for d in drafted],
            start=len(self.committed),
            epoch=self.epoch,
        )
        for index in range(accepted):
            self._commit(drafted[index].token)
            if self.finished:
                return index + 1, False
        if correction is not None:
            self._drop_queue()
            self._commit(correction)
            model.truncate(len(self.committed) - 1)
            return accepted, True
        self._logits = rows[-1]
        if self.opening.schedule.bonus or (self._steps != 0 and not drafted):
            self._logits = None
            self._draw_alone(rows[-1])
        return accepted, False

    def _draw_alone(self, logits: torch.Tensor) -> None:
        self._commit(self.coupling.choose(logits, position=len(self.committed), epoch=self.epoch))
        if self._steps > 0:
            self._steps -= 1

    def _commit(self, token: int) -> None:
        self.committed.append(token)
        self.finished = self._finish_reason() is not None

    def _finish_reason(self) -> FinishReason | None:
        sampling = self.opening.sampling
        if self.committed and self.committed[-1] in sampling.end_token_ids:
            return "stop"
        return "length" if len(self.committed) >= sampling.max_tokens else None


def _unpack(window: DraftWindow) -> list[Drafted]:
    """The tokens of a window with their proposals. Raises InvalidProposal if there are not as many of both."""
    if window.proposal_ids is None or window.proposal_probs is None:
        return [Drafted(token, None) for token in window.tokens]
    proposals = unstack_proposals(window.proposal_ids, window.proposal_probs)
    if len(proposals) != len(window.tokens):
        raise InvalidProposal(f"{len(window.tokens)} tokens, but {len(proposals)} proposals")
    return [Drafted(token, proposal) for token, proposal in zip(window.tokens, proposals, strict=True)]
