"""The draft actor: prefills on the kept video tokens, then writes windows without being asked."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence

import torch

from pvlm.actors.actor import Actor
from pvlm.actors.branches import Branch, Preparation, Work, prepared_message, stopped_message, window_message
from pvlm.actors.prefixes import View
from pvlm.actors.session import ActorSession, Employer, Round, Stopwatch, WorkAbandoned, milliseconds_since
from pvlm.speculation.coupling import Drafted, GreedyCoupling, coupling_for
from pvlm.speculation.masks import unpack_mask
from pvlm.speculation.text import agreement, finish_reason
from pvlm_protocols.backend import GreedyDrafting, PromptError, Session, SharedPasses
from pvlm_protocols.branches import Branches, BranchPasses
from pvlm_protocols.limits import MAX_STOPPED
from pvlm_protocols.messages import (
    Advance,
    FromActor,
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
        self._mask: PruneMask | None = None
        self._prefill_logits: torch.Tensor | None = None
        self._greedy_drafting: GreedyDrafting | None = None
        self._forking: Branches | None = None
        self._preparation = Preparation(opening.sampling.max_tokens)
        self._work = Work(self._preparation.new_id(), 0, len(self.tokens), opening.window.gamma)
        self._aside: Branch | None = None
        """A branch whose rows are in the cache instead of the line's."""
        self._writing: Sequence[Branch] = ()  # the branches in the running pass
        self._since_s = 0.0
        """When work on the next token began."""
        self._stopped: deque[Stopped] = deque(maxlen=MAX_STOPPED)

    # ---- messages -------------------------------------------------------------------------------------------------

    def handle(self, message: SessionMessage) -> None:
        match message:
            case PruneMask():
                self._mask = message
            case Rollback() if message.epoch > self.epoch:
                self._roll_back(message)
            case Advance() if message.epoch == self.epoch:
                self._advance(message)

    def _advance(self, message: Advance) -> None:
        if message.branch:
            branch = self._preparation.take(message.branch)
            self._adopt(branch)
            self._preparation.follow(branch.id, branch.point + 1, branch.written, at_once=False)
            self._start_window(message.window.gamma, parent=branch.id)
        if message.length > len(self.tokens):
            raise ValueError(f"{message.length} tokens are confirmed, but {len(self.tokens)} were written")
        self.committed = max(self.committed, message.length)
        self.window = message.window
        self._preparation.settle(self.committed)

    def _adopt(self, branch: Branch) -> None:
        """Let a branch be the line, and drop all others."""
        self.tokens = [*self.tokens[: branch.point], *branch.tokens]
        if self.model is None:
            return
        if self._aside is not branch:
            self._return_to_line()
            if branch.session is not None and self._forking is not None:
                self._forking.adopt(branch.session)
            elif branch.point < self.model.length:
                self.model.truncate(branch.point)
        self._aside = branch.session = None
        self._preparation.clear()

    def _return_to_line(self) -> None:
        """Take the rows of a branch out of the cache."""
        if self._aside is not None and self.model is not None:
            self.model.truncate(min(self.model.length, self._aside.point))
        self._aside = None

    def _roll_back(self, message: Rollback) -> None:
        if not 0 <= message.keep <= len(self.tokens):
            raise ValueError(f"{message.keep} tokens are to be kept of {len(self.tokens)}")
        if self._work.draft_ms:
            self._stopped.append(stopped_message(self.epoch, self._work))
        self.epoch = message.epoch
        self.window = message.window
        text, branch = self._after(message)
        if branch is not None:
            self._preparation.remove(branch)
            self._adopt(branch)
        else:
            self._return_to_line()
            self._preparation.clear()
            self.tokens = text
            # What is fed next must be at least one token, for logits belong to the token that was fed last.
            if self.model is not None:
                self.model.truncate(min(self.model.length, message.keep, max(0, len(self.tokens) - 1)))
        self.committed = len(text)
        self._start_window(_first_size(message), start=len(text))
        if branch is not None:
            self._work.adopt(branch, self._since_s)
            self._send()

    def _after(self, message: Rollback) -> tuple[list[int], Branch | None]:
        """The text after a rollback, and the branch that continues it."""
        text = self.tokens[: message.keep] + list(message.tokens)
        return text, self._preparation.find(self.tokens, text, self.committed)

    def resumable(self) -> bool:
        return self._prefill_logits is not None

    def resume(self, message: Resume) -> None:
        keep = agreement(self.tokens, message.committed)
        tokens = message.committed[keep:]
        self._roll_back(Rollback(session=self.id, epoch=message.epoch, keep=keep, tokens=tokens, window=message.window))
        self._stopped.clear()

    def outdates(self, message: SessionMessage) -> bool:
        """A branch that becomes the line makes the tokens in work worthless, and so does a rollback, unless one of them
        continues its text and is still wanted. A prefill serves every epoch.
        """
        if self._prefill_logits is None:
            return False
        if isinstance(message, Advance):
            return message.epoch == self.epoch and message.branch > 0
        if not isinstance(message, Rollback) or message.epoch <= self.epoch:
            return False
        _, branch = self._after(message)
        return branch is None or branch not in self._writing or len(branch.written.tokens) >= _first_size(message)

    # ---- work -----------------------------------------------------------------------------------------------------

    def ready(self) -> bool:
        if not self.prepared:
            return self.model is None or self._mask is not None or self._sees_enough()
        return self._line_ready() or self._preparation.pending or self._due()

    def _line_ready(self) -> bool:
        # In turns it begins a window when all before is committed; else one, of any length, may wait for its verdict.
        turns = self.opening.schedule.mode == "turns" or not self.window.ahead
        lead = 0 if turns else max(self.window.gamma, self._preparation.last)
        return self._work.start <= self.committed + lead and not self._ended()

    def _due(self) -> bool:
        """Are branches for the last window to be planned?"""
        return bool(self.window.outcomes) and self._preparation.due(self.committed)

    def _ended(self) -> bool:
        """Is the answer complete, as far as the draft knows it?"""
        return finish_reason(self.tokens, self.opening.sampling) is not None

    def urgent(self) -> bool:
        """A session is urgent whose windows have all been verified; one that writes further ahead can wait."""
        return self._prefill_logits is None or self._work.start <= self.committed

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
            if isinstance(model, Branches) and isinstance(self.actor.backend, SharedPasses | BranchPasses):
                self._forking = model
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
        self._prefill_logits = logits.unsqueeze(0).clone()
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
        if self._due():
            self._preparation.plan(self.window.outcomes, self.committed, self.window.gamma)
        self._since_s, self._writing = time.monotonic(), ()
        if not self._work.written.tokens:
            self._work.began_s = self._since_s
        try:
            if self._forking is not None and self._preparation.pending:
                yield from self._write_together(self._forking)
            elif self._line_ready():
                yield from self._write_line()
            elif self._preparation.pending:
                yield from self._write_aside()
        except WorkAbandoned:  # for a rollback, which reports the time
            self._work.draft_ms += milliseconds_since(self._since_s)
            raise

    def _write_line(self) -> Round:
        """The line alone."""
        self._return_to_line()
        while True:
            unfed = self._unfed(self.tokens)
            greedy = None if self.window.outcomes else self._greedy_drafting
            if unfed and greedy is not None and self.actor.undisturbed():
                self._draft_greedily(greedy, unfed)
                return
            logits = (yield [(self._cache, unfed)]).logits[0] if unfed else self._prefill_logits
            assert logits is not None  # it is prepared
            (drafted,) = self._draft([logits], [len(self.tokens)])
            if self._take(drafted) or not self.actor.undisturbed():
                return
            self._look()

    def _write_together(self, model: Branches) -> Round:
        """The line and all branches, a token of each in a pass."""
        preparation = self._preparation
        self._send(preparation.finished())  # a verdict may have dropped those that were not complete
        while growing := preparation.growing():
            parts: list[tuple[Session, list[int]]] = []
            if line := self._line_ready():
                parts.append((self._cache, self._unfed(self.tokens)))
            growing = [branch for branch in growing if branch.point <= self._cache.length]
            for branch in growing:
                if branch.session is None:
                    branch.session = model.fork(branch.point, branch.size)
                parts.append((branch.session, self._unfed(branch.tokens, branch.session.length - branch.point)))
            if not parts:  # nothing that the branches could start from
                preparation.stop()
                return
            self._writing = growing
            rows = (yield parts).logits
            self._writing = ()
            self._work.beside += len(growing)
            places = [branch.reach for branch in growing]
            drafted = self._draft(rows, [len(self.tokens), *places] if line else places)
            for branch, next_one in zip(growing, drafted[int(line) :], strict=True):
                branch.grow(next_one, self.opening.sampling.end_token_ids)
            if line:
                preparation.plan_after(self.window, self._work, drafted[0].others)
                self._take(drafted[0], preparation.finished())
            else:
                self._send(preparation.finished())
            if not self.actor.undisturbed():
                return
            self._look()

    def _write_aside(self) -> Round:
        """One branch in the cache of the line, which has to wait anyway."""
        branch = self._preparation.growing()[0]
        if self._aside is not branch:
            self._return_to_line()
            self._cache.truncate(min(self._cache.length, branch.point))
            self._aside = branch
        while True:
            text = self.tokens[: branch.point] + branch.tokens
            self._writing = [branch]
            rows = (yield [(self._cache, self._unfed(text))]).logits
            self._writing = ()
            (drafted,) = self._draft(rows, [branch.reach])
            branch.grow(drafted, self.opening.sampling.end_token_ids)
            branch.draft_ms += milliseconds_since(self._since_s)
            if branch.complete:
                self._send([self._preparation.finish(branch)])
                return
            if not self.actor.undisturbed():
                return
            self._look()

    def _draft(self, rows: Sequence[torch.Tensor], positions: Sequence[int]) -> list[Drafted]:
        """A token from the last row of each logits ``(n, V)``, for its position of the answer."""
        others = max(self.window.outcomes, default=0)
        last = [row if len(row) == 1 else row[-1:] for row in rows]
        logits = last[0] if len(last) == 1 else torch.cat(last)
        return self.coupling.draft(logits, positions=positions, epoch=self.epoch, others=others)

    @property
    def _cache(self) -> Session:
        assert self.model is not None  # it is prepared
        return self.model

    def _unfed(self, tokens: Sequence[int], fed: int | None = None) -> list[int]:
        """The tokens after those in a cache (None: the line's).

        A target whose vocabulary is padded further may commit an id that the draft does not have. That is rare, and any
        other id can replace it: only the guesses after it suffer.
        """
        last = self.actor.backend.info.vocab_size - 1
        return [min(token, last) for token in tokens[self._cache.length if fed is None else fed :]]

    def _draft_greedily(self, model: GreedyDrafting, unfed: list[int]) -> None:
        """The rest of the window, by a model that feeds its own tokens."""
        sampling = self.opening.sampling
        left = min(self._work.size + self._work.start, sampling.max_tokens) - len(self.tokens)
        for token in model.draft(unfed, left, vocab_limit=sampling.vocab_limit, on_progress=self._tick):
            if self._take(Drafted(token, None)) or not self.actor.undisturbed():
                return
            self._look()

    def _tick(self) -> None:
        self.actor.tick(self)

    def _look(self) -> None:
        """Look for messages between two tokens."""
        self._since_s = time.monotonic()
        self.actor.look(self)

    def _take(self, drafted: Drafted, prepared: Sequence[Branch] = ()) -> bool:
        """Append a token, and send what is complete. Returns whether its window is."""
        self.tokens.append(drafted.token)
        self._work.written.add(drafted)
        self._work.draft_ms += milliseconds_since(self._since_s)
        return self._send(prepared)

    def _send(self, prepared: Sequence[Branch] = ()) -> bool:
        """Send the window in work and begin the next one, if it is complete; and branches that are. Returns whether
        the window was. One without tokens is not.
        """
        messages: list[FromActor] = []
        work, written = self._work, len(self._work.written.tokens)
        if complete := written >= work.size or (written > 0 and self._ended()):
            messages.append(window_message(self.id, self.epoch, work, self._stopped))
            self._stopped.clear()
            self._preparation.follow(work.id, work.start, work.written, at_once=work.parent > 0)
            self._start_window(self.window.gamma, parent=work.id)
        if prepared:
            messages.append(prepared_message(self.id, self.epoch, prepared))
        if messages:
            self.post(*messages)
        return complete

    def _start_window(self, size: int, *, parent: int = 0, start: int | None = None) -> None:
        self._work = Work(self._preparation.new_id(), parent, len(self.tokens) if start is None else start, size)

    def close(self) -> None:
        self._preparation.clear()
        super().close()


def _first_size(message: Rollback) -> int:
    """Of the window after a rollback."""
    return message.window.wait or message.window.gamma
