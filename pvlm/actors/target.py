"""The target actor: decides every token of the answer."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator

import torch

from pvlm.actors.actor import Actor
from pvlm.actors.prefixes import View
from pvlm.actors.session import ActorSession, Employer, Pass, Round, Stopwatch
from pvlm.speculation.coupling import Drafted, coupling_for
from pvlm.speculation.masks import kept_count, pack_mask
from pvlm.speculation.proposals import InvalidProposal, unstack_proposals
from pvlm.speculation.pruning import default_early_layer, load_pruner, select_tokens
from pvlm.speculation.text import agreement, finish_reason
from pvlm_protocols.backend import EarlyStates, Session
from pvlm_protocols.messages import (
    DraftWindow,
    FinishReason,
    Open,
    PrefillDone,
    PruneMask,
    Resume,
    SessionMessage,
    SetMode,
    SetWindow,
    Verdict,
)


class TargetActor(Actor):
    """See the module."""

    role = "target"

    def new_session(self, opening: Open) -> ActorSession:
        return TargetSession(self, opening)


class TargetSession(ActorSession):
    """``committed`` is the answer so far. The cache covers it but for at most one *pending* token, its last.

    - *holding* (``_logits`` is set): no token is pending, and the logits of the next position are at hand. They settle
      the first drafted token without a pass; alone, the target draws from them.
    - *pending* (``_logits`` is None): a pass over ``[pending, x1 ... xk]`` settles the drafted tokens x1 to xk.

    ``mode`` says what it does without a drafted token: ``turns``: wait; ``together``: one pass over the pending token,
    after a rejection only when the patience for the draft is over; ``alone``: decode.

    Each position is drawn once: a drafted token that meets a committed one is compared with it, never judged again.
    """

    def __init__(self, actor: Employer, opening: Open) -> None:
        super().__init__(actor, opening)
        self.coupling = coupling_for(opening.sampling, session=opening.session)
        self.committed = list(opening.committed)
        self.epoch = opening.epoch
        self.window = opening.window
        self.finished = False
        self._prompt_cached = False
        self._logits: torch.Tensor | None = None
        self._queue: deque[Drafted] = deque()
        self.mode = opening.schedule.mode
        self._rejected = False
        """The last verdict rejected a drafted token, and the draft's next window is worth a wait."""
        self._idle_since = time.monotonic()

    # ---- messages -------------------------------------------------------------------------------------------------

    def handle(self, message: SessionMessage) -> None:
        match message:
            case DraftWindow():
                self._take_window(message)
            case SetMode():
                self.mode = message.mode
            case SetWindow():
                self.window = message.window

    def _take_window(self, window: DraftWindow) -> None:
        """Queue what is new in a window; a window that contradicts the committed text ends its epoch."""
        if window.epoch < self.epoch:
            return
        if window.epoch > self.epoch:
            self.epoch = window.epoch
            self._queue.clear()
        if window.start > self._reach():
            return
        drafted = _unpack(window)
        decided = self.committed[window.start :]
        if agreement(window.tokens, decided) < min(len(drafted), len(decided)):
            self.epoch = window.epoch + 1
            self._queue.clear()
            return
        room = self.opening.sampling.max_tokens - self._reach()
        self._queue.extend(drafted[self._reach() - window.start :][:room])

    def resumable(self) -> bool:
        return self._prompt_cached

    def resume(self, message: Resume) -> None:
        assert self.model is not None
        keep = min(self.model.length, agreement(self.committed, message.committed), len(message.committed) - 1)
        self.model.truncate(keep)
        self.committed = list(message.committed)
        self.epoch = message.epoch
        self.window = message.window
        self.mode = self.opening.schedule.mode
        self.finished = self.prepared = self._rejected = False
        self._logits = None
        self._queue.clear()

    def _reach(self) -> int:
        """Answer tokens that are committed or wait for their verdict."""
        return len(self.committed) + len(self._queue)

    # ---- work -----------------------------------------------------------------------------------------------------

    def ready(self) -> bool:
        if not self.prepared:
            return True
        if self.finished:
            return False
        if self._queue or self.mode == "alone":
            return True
        if self._logits is not None:  # without an overlapped prefill no window can be here: draw the first token
            return self.mode == "turns" and not self.opening.schedule.overlap_prefill
        return not self._waiting()

    def urgent(self) -> bool:
        """A pass over the pending token alone, while the draft writes, settles one token. A pass over another session's
        window settles more, and this session's window may have arrived by then.
        """
        return self.mode != "together" or bool(self._queue) or not self.prepared

    def patience_s(self) -> float | None:
        if self.finished or not self.prepared or self._logits is not None or not self._rejected:
            return None
        if self.mode == "turns":
            return None
        return max(0.0, self.window.patience_ms / 1000 - (time.monotonic() - self._idle_since))

    def _waiting(self) -> bool:
        """Pending, and a window is worth waiting for."""
        patience = self.patience_s()
        return self.mode == "turns" or (patience is not None and patience > 0)

    def view(self) -> View:
        """The early layer whose states pruning needs; None: any prefix will do."""
        pruning = self.opening.pruning
        if not self.opening.visuals or self.opening.schedule.mode == "alone" or not pruning.ratio:
            return None
        return self._early_layer() if load_pruner(pruning.method).needs_states else None

    def _early_layer(self) -> int:
        return self.opening.pruning.early_layer or default_early_layer(self.actor.backend.info.layers)

    def prepare(self) -> Iterator[None]:
        if (model := self.model) is None:
            model = self.open_model()
            pruning = self.opening.pruning
            if not self._prunes(model) or not load_pruner(pruning.method).needs_states:
                self._publish_mask(model, None)
            yield
        yield from self._prefill(model)

    def _prunes(self, model: Session) -> bool:
        pruning = self.opening.pruning
        return (
            self.opening.schedule.mode != "alone" and kept_count(model.video_tokens, pruning.ratio) < model.video_tokens
        )

    def _publish_mask(self, model: Session, states: EarlyStates | None) -> None:
        if self.opening.schedule.mode == "alone":
            return
        pruning = self.opening.pruning
        videos = model.video_tokens
        kept = videos
        bits = b""
        if self._prunes(model):
            kept = kept_count(videos, pruning.ratio)
            bits = pack_mask(select_tokens(load_pruner(pruning.method), videos, kept, states, pruning.seed).numpy())
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

    def _prefill(self, model: Session) -> Iterator[None]:
        """Bring the prompt and the committed tokens into the cache, as far as they are not there."""
        pruner = load_pruner(self.opening.pruning.method)
        wants_states = self._prunes(model) and pruner.needs_states
        watch = Stopwatch()
        if not self._prompt_cached:
            self._logits = yield from self.run_prompt(
                model,
                watch,
                early_layer=self._early_layer() if wants_states else None,
                on_early_layer=(lambda states: self._publish_mask(model, states)) if wants_states else None,
                early_attention=wants_states and pruner.needs_attention,
            )
            self._prompt_cached = True
        if missing := self.committed[model.length :]:
            self._logits = model.extend(missing, on_progress=lambda: self.actor.tick(self))[-1]
        self._idle_since = time.monotonic()
        self.post(
            PrefillDone(
                session=self.id,
                role="target",
                prompt_tokens=model.prompt_tokens,
                prefill_ms=watch.ms,
                ended_s=self._idle_since,
            )
        )

    def round(self) -> Round:
        """Verify the drafted tokens with at most one pass, commit, and report the verdict."""
        start, accepted, rejected = len(self.committed), 0, False
        window = len(self._queue)
        pass_tokens, pass_ms = 0, 0.0
        if self._logits is not None:
            accepted, rejected = self._settle_held(self._logits)
        # A token that was accepted without a pass is now pending, and its pass takes in the rest of the window. A
        # correction, or a token that the target drew, is reported first.
        drawn_alone = len(self.committed) > start and not accepted
        if self._logits is None and not (rejected or drawn_alone or self.finished):
            model = self.model
            assert model is not None  # it is prepared
            drafted = list(self._queue)
            done = yield [*self.committed[model.length :], *(d.token for d in drafted)]
            self._queue.clear()
            accepted_in_pass, rejected = self._settle_pass(model, drafted, done)
            accepted += accepted_in_pass
            pass_tokens, pass_ms = done.tokens, done.ms
        self._rejected = rejected and self.window.wait > 0
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
            self._queue.clear()
        return int(accepted), not accepted

    def _settle_pass(self, model: Session, drafted: list[Drafted], done: Pass) -> tuple[int, bool]:
        """Pending: settle by a pass over the pending token and all drafted ones. Returns as `_settle_held`."""
        rows = done.logits
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
            self._commit(correction)
            model.truncate(len(self.committed) - 1)
            return accepted, True
        self._logits = rows[-1]
        if self.mode == "turns" or (self.mode == "alone" and not drafted):
            self._logits = None
            self._draw_alone(rows[-1])
        return accepted, False

    def _draw_alone(self, logits: torch.Tensor) -> None:
        self._commit(self.coupling.choose(logits, position=len(self.committed), epoch=self.epoch))

    def _commit(self, token: int) -> None:
        self.committed.append(token)
        self.finished = self._finish_reason() is not None

    def _finish_reason(self) -> FinishReason | None:
        last = self.committed[-1] if self.committed else None
        return finish_reason(len(self.committed), last, self.opening.sampling)


def _unpack(window: DraftWindow) -> list[Drafted]:
    """The tokens of a window with their proposals. Raises InvalidProposal if there are not as many of both."""
    if window.proposal_ids is None or window.proposal_probs is None:
        return [Drafted(token, None) for token in window.tokens]
    proposals = unstack_proposals(window.proposal_ids, window.proposal_probs)
    if len(proposals) != len(window.tokens):
        raise InvalidProposal(f"{len(window.tokens)} tokens, but {len(proposals)} proposals")
    return [Drafted(token, proposal) for token, proposal in zip(window.tokens, proposals, strict=True)]
