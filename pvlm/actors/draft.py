"""The draft actor: prefills on the kept video tokens, then writes windows without being asked."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator

import torch

from pvlm.actors.actor import Actor
from pvlm.actors.prefixes import View
from pvlm.actors.session import ActorSession, Employer, Round, Stopwatch, WorkAbandoned, milliseconds_since
from pvlm.speculation.coupling import Drafted, GreedyCoupling, coupling_for
from pvlm.speculation.masks import unpack_mask
from pvlm.speculation.proposals import Proposal, stack_proposals
from pvlm.speculation.text import agreement, finish_reason
from pvlm_protocols.backend import GreedyDrafting, PromptError, Session
from pvlm_protocols.limits import MAX_STOPPED
from pvlm_protocols.messages import (
    Advance,
    DraftWindow,
    Open,
    PrefillDone,
    PruneMask,
    Resume,
    Rollback,
    SessionMessage,
    Stopped,
)


class DraftActor(Actor):
    """See the module."""

    role = "draft"

    def new_session(self, opening: Open) -> ActorSession:
        return DraftSession(self, opening)


class DraftSession(ActorSession):
    """``tokens`` are the answer as the draft knows it: the committed tokens, and its own after them.

    The cache holds the first ``model.length`` of them; the rest is fed when the next token is wanted, so the last token
    of a window costs nothing if it is rejected.
    """

    def __init__(self, actor: Employer, opening: Open) -> None:
        super().__init__(actor, opening)
        self.coupling = coupling_for(opening.sampling, session=opening.session)
        self.tokens = list(opening.committed)
        self.committed = len(self.tokens)
        self.epoch = opening.epoch
        self.window = opening.window
        self._window_size = opening.window.gamma
        self._window_begun = len(self.tokens)
        self._mask: PruneMask | None = None
        self._prefill_logits: torch.Tensor | None = None
        self._greedy_drafting: GreedyDrafting | None = None
        self._drafted: list[int] = []
        self._proposals: list[Proposal] = []
        self._draft_ms = 0.0
        self._began_s = 0.0
        self._stopped: deque[Stopped] = deque(maxlen=MAX_STOPPED)

    # ---- messages -------------------------------------------------------------------------------------------------

    def handle(self, message: SessionMessage) -> None:
        match message:
            case PruneMask():
                self._mask = message
            case Rollback() if message.epoch > self.epoch:
                self._roll_back(message)
            case Advance() if message.epoch == self.epoch:
                if message.length > len(self.tokens):
                    raise ValueError(f"{message.length} tokens are confirmed, but {len(self.tokens)} were written")
                self.committed = max(self.committed, message.length)
                self.window = message.window

    def _roll_back(self, message: Rollback) -> None:
        if not 0 <= message.keep <= len(self.tokens):
            raise ValueError(f"{message.keep} tokens are to be kept of {len(self.tokens)}")
        if self._draft_ms:
            self._stopped.append(
                Stopped(
                    epoch=self.epoch,
                    start=len(self.tokens) - len(self._drafted),
                    tokens=len(self._drafted),
                    draft_ms=self._draft_ms,
                    ended_s=time.monotonic(),
                )
            )
        self.epoch = message.epoch
        self.window = message.window
        self.tokens = self.tokens[: message.keep] + list(message.tokens)
        self.committed = len(self.tokens)
        self._start_window(message.window.wait or message.window.gamma)
        # What is fed next must be at least one token, for logits belong to the token that was fed last.
        if self.model is not None:
            keep = min(self.model.length, message.keep, max(0, len(self.tokens) - 1))
            if keep < self.model.length:
                self.model.truncate(keep)

    def resumable(self) -> bool:
        return self._prefill_logits is not None

    def resume(self, message: Resume) -> None:
        keep = agreement(self.tokens, message.committed)
        tokens = message.committed[keep:]
        self._roll_back(Rollback(session=self.id, epoch=message.epoch, keep=keep, tokens=tokens, window=message.window))
        self._stopped.clear()

    def outdates(self, message: SessionMessage) -> bool:
        """A rollback makes the token in work worthless. A prefill serves every epoch."""
        return self._prefill_logits is not None and isinstance(message, Rollback) and message.epoch > self.epoch

    # ---- work -----------------------------------------------------------------------------------------------------

    def ready(self) -> bool:
        if not self.prepared:
            return self.model is None or self._mask is not None or self._sees_enough()
        # Taking turns, it begins a window only when all before is committed; else one window may wait for its verdict.
        lead = self.window.gamma if self.window.ahead and self.opening.schedule.mode != "turns" else 0
        return self._window_begun <= self.committed + lead and not self._ended()

    def _ended(self) -> bool:
        """Is the answer complete, as far as the draft knows it?"""
        last = self.tokens[-1] if self.tokens else None
        return finish_reason(len(self.tokens), last, self.opening.sampling) is not None

    def urgent(self) -> bool:
        """A session is urgent whose windows have all been verified; one that writes further ahead can wait."""
        return self._prefill_logits is None or self._window_begun <= self.committed

    def view(self) -> View:
        """Prefixes of the same pruning, whichever video tokens it has kept for an earlier question."""
        pruning = self.opening.pruning
        return pruning.method, pruning.ratio, pruning.early_layer, pruning.compact_positions

    def _sees_enough(self) -> bool:
        """An earlier view of all videos is kept, so the draft waits for no mask: see docs/concepts/pruning.md."""
        return self.start.covers_video and self.opening.schedule.overlap_prefill

    def prepare(self) -> Iterator[None]:
        if (model := self.model) is None:
            model = self.open_model()
            if isinstance(self.coupling, GreedyCoupling) and isinstance(model, GreedyDrafting):
                self._greedy_drafting = model
            yield  # the mask may come later
        yield from self._prefill(model)

    def _prefill(self, model: Session) -> Iterator[None]:
        mask = self._mask
        keep, dropped = None, 0
        if mask is not None and mask.kept < mask.video_tokens:
            if mask.video_tokens != model.video_tokens:
                raise PromptError(
                    f"the prune mask is for {mask.video_tokens} video tokens, but the draft has {model.video_tokens}: "
                    "pruning needs a draft with the target's grid (or use --prune none)"
                )
            keep = torch.from_numpy(unpack_mask(mask.bits, mask.video_tokens))
            if (kept := int(keep.sum())) != mask.kept:
                raise ValueError(f"the prune mask keeps {kept} video tokens, and says that it keeps {mask.kept}")
            dropped = mask.video_tokens - mask.kept
        watch = Stopwatch()
        compact = self.opening.pruning.compact_positions
        logits = yield from self.run_prompt(model, watch, keep, compact_positions=compact)
        self._prefill_logits = logits.clone()
        self.post(
            PrefillDone(
                session=self.id,
                role="draft",
                prompt_tokens=self.start.rows or model.prompt_tokens - dropped,
                prefill_ms=watch.ms,
                ended_s=time.monotonic(),
            )
        )

    def round(self) -> Round:
        """Write tokens until a window is complete, a message has come, or other sessions wait for a turn."""
        model, logits = self.model, self._prefill_logits
        assert model is not None  # it is prepared
        assert logits is not None
        # A target whose vocabulary is padded further may commit an id that the draft does not have. That is rare, and
        # any other id can replace it: only the guesses after it suffer.
        last = self.actor.backend.info.vocab_size - 1
        started = time.monotonic()
        if not self._drafted:
            self._began_s = started
        try:
            while True:
                unfed = [min(token, last) for token in self.tokens[model.length :]]
                if unfed and self._greedy_drafting is not None and self.actor.undisturbed():
                    self._draft_greedily(self._greedy_drafting, unfed, started)
                    return
                if unfed:
                    logits = (yield unfed).logits[-1]
                drafted = self.coupling.draft(logits, position=len(self.tokens), epoch=self.epoch)
                if self._take(drafted, started) or not self.actor.undisturbed():
                    return
                started = time.monotonic()
                self.actor.look(self)
        except WorkAbandoned:  # for a rollback, which reports the time
            self._draft_ms += milliseconds_since(started)
            raise

    def _draft_greedily(self, model: GreedyDrafting, unfed: list[int], started: float) -> None:
        """The rest of the window, by a model that feeds its own tokens. Work on the first one began at ``started``."""
        sampling = self.opening.sampling
        left = min(self._window_size + self._window_begun, sampling.max_tokens) - len(self.tokens)
        for token in model.draft(unfed, left, vocab_limit=sampling.vocab_limit, on_progress=self._tick):
            if self._take(Drafted(token, None), started) or not self.actor.undisturbed():
                return
            started = time.monotonic()
            self.actor.look(self)

    def _tick(self) -> None:
        self.actor.tick(self)

    def _take(self, drafted: Drafted, started: float) -> bool:
        """Append a token, on which work was begun at ``started``. Returns whether its window is complete, and sent."""
        self.tokens.append(drafted.token)
        self._drafted.append(drafted.token)
        if drafted.proposal is not None:
            self._proposals.append(drafted.proposal)
        self._draft_ms += milliseconds_since(started)
        complete = len(self.tokens) - self._window_begun >= self._window_size or self._ended()
        if complete:
            self._send()
            self._start_window(self.window.gamma)
        return complete

    def _send(self) -> None:
        ids, probs = stack_proposals(self._proposals) if self._proposals else (None, None)
        self.post(
            DraftWindow(
                session=self.id,
                epoch=self.epoch,
                start=len(self.tokens) - len(self._drafted),
                tokens=tuple(self._drafted),
                proposal_ids=ids,
                proposal_probs=probs,
                draft_ms=self._draft_ms,
                began_s=self._began_s,
                ended_s=time.monotonic(),
                stopped=tuple(self._stopped),
            )
        )
        self._stopped.clear()

    def _start_window(self, size: int) -> None:
        self._window_size = size
        self._window_begun = len(self.tokens)
        self._drafted = []
        self._proposals = []
        self._draft_ms = 0.0
