"""The target actor: decides every token of the answer."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice, takewhile

import torch

from pvlm.actors.actor import Actor
from pvlm.actors.prefixes import View
from pvlm.actors.prepared import HeldWindows, Waiting
from pvlm.actors.session import ActorSession, Employer, Round, Stopwatch
from pvlm.speculation.coupling import coupling_for
from pvlm.speculation.masks import kept_count, pack_mask
from pvlm.speculation.pruning import default_early_layer, load_pruner, select_tokens
from pvlm.speculation.text import agreement, finish_reason
from pvlm_protocols.backend import EarlyStates, Session
from pvlm_protocols.messages import (
    DraftWindow,
    FinishReason,
    Open,
    PrefillDone,
    Prepared,
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


@dataclass
class Tested:
    """The drafted tokens that a round has tested; see `Verdict`."""

    accepted: int = 0
    rejected: bool = False
    window: int = 0
    offset: int = 0
    branch: int = 0


class TargetSession(ActorSession):
    """``committed`` is the answer so far. The cache covers it but for at most one *pending* token, its last.

    - *holding* (``_logits`` is set): no token is pending, and the logits of the next position are at hand. They settle
      the first drafted token without a pass; alone, the target draws from them.
    - *pending* (``_logits`` is None): a pass over ``[pending, x1 ... xk]`` settles the drafted tokens x1 to xk.

    ``mode`` says what it does without a drafted token: ``turns``: wait; ``together``: one pass over the pending token,
    after a rejection only when the patience for the draft is over; ``alone``: decode.

    After a pass it takes in what has arrived meanwhile. A rejection whose outcome is prepared (`HeldWindows`) is
    followed by the next pass at once; so is a window that was accepted whole, if the next one has arrived.

    Each position is drawn once: a drafted token that meets a committed one is compared with it, never judged again.
    """

    def __init__(self, actor: Employer, opening: Open) -> None:
        super().__init__(actor, opening)
        self.coupling = coupling_for(opening.sampling, session=opening.session)
        self.committed = list(opening.committed)
        self.held = self._hold(opening.epoch)
        self.window = opening.window
        self.finished = False
        self._prompt_cached = False
        self._logits: torch.Tensor | None = None
        self.mode = opening.schedule.mode
        self._rejected = False
        """The last verdict rejected a drafted token, and the draft's next window is worth a wait."""
        self._verdict: Verdict | None = None
        """It is posted once the next pass has been asked for, if that follows at once."""
        self._fault: Exception | None = None
        """What went wrong beside a pass; it ends the round."""
        self._told = False
        """The last pass called `meanwhile`."""
        self._idle_since = time.monotonic()

    # ---- messages -------------------------------------------------------------------------------------------------

    def handle(self, message: SessionMessage) -> None:
        match message:
            case DraftWindow():
                self.held.take(message)
            case Prepared():
                self.held.take_prepared(message)
            case SetMode():
                self.mode = message.mode
            case SetWindow():
                self.window = message.window

    def _continues(self, message: SessionMessage) -> bool:
        """Is it a window of the epoch that is being verified?"""
        return isinstance(message, DraftWindow | Prepared) and message.epoch == self.held.epoch

    def _hold(self, epoch: int) -> HeldWindows:
        return HeldWindows(self.committed, epoch, self.opening.sampling.max_tokens)

    def resumable(self) -> bool:
        return self._prompt_cached

    def resume(self, message: Resume) -> None:
        assert self.model is not None
        keep = min(self.model.length, agreement(self.committed, message.committed), len(message.committed) - 1)
        self.model.truncate(keep)
        self.committed = list(message.committed)
        self.held = self._hold(message.epoch)
        self.window = message.window
        self.mode = self.opening.schedule.mode
        self.finished = self.prepared = self._rejected = False
        self._logits = self._verdict = self._fault = None

    # ---- work -----------------------------------------------------------------------------------------------------

    def ready(self) -> bool:
        if not self.prepared:
            return True
        if self.finished:
            return False
        if self.held.queue or self.mode == "alone":
            return True
        if self._logits is not None:  # without an overlapped prefill no window can be here: draw the first token
            return self.mode == "turns" and not self.opening.schedule.overlap_prefill
        return not self._waiting()

    def urgent(self) -> bool:
        """A pass over the pending token alone, while the draft writes, settles one token. A pass over another session's
        window settles more, and this session's window may have arrived by then.
        """
        return self.mode != "together" or bool(self.held.queue) or not self.prepared

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
        prefill_ms, self._idle_since = watch.ms, time.monotonic()
        self.post(
            PrefillDone(
                session=self.id,
                role="target",
                prompt_tokens=model.prompt_tokens,
                prefill_ms=prefill_ms,
                ended_s=self._idle_since,
            )
        )

    def round(self) -> Round:
        """Verify what is at hand, again and again while nobody else wants the actor."""
        try:
            yield from self._verify()
            while self.held.queue and not self.finished and self.actor.undisturbed():
                yield from self._verify()
        except Exception:
            self._report()
            raise
        self._report()

    def meanwhile(self) -> None:
        self._told = True
        self._report()
        if self.prepared and self.window.outcomes:
            try:
                self._take_in()
            except Exception as error:
                self._fault = error

    def _take_in(self) -> None:
        """Take in the windows that have been read."""
        for message in self.actor.arrived(self, self._continues):
            self.handle(message)

    def _report(self) -> None:
        """Post the verdict that has not been posted yet."""
        if self._verdict is not None:
            verdict, self._verdict = self._verdict, None
            self.post(verdict)

    def _verify(self) -> Round:
        """Verify the drafted tokens with at most one pass, commit, and make the verdict."""
        start, tested = len(self.committed), Tested()
        window = left = self._at_hand()
        pass_tokens, own_tokens, pass_ms = 0, 0, 0.0
        if self._logits is not None:
            self._settle_held(self._logits, tested)
            left = max(0, left - 1)
        # A token that was accepted without a pass is now pending, and its pass takes in the rest of the window. A
        # correction, or a token that the target drew, is reported first.
        drawn_alone = len(self.committed) > start and not tested.accepted
        if self._logits is None and not (tested.rejected or drawn_alone or self.finished):
            model = self.model
            assert model is not None  # it is prepared
            drafted = list(islice(self.held.queue, left))
            fed = [*self.committed[model.length :], *(waiting.token for waiting in drafted)]
            if not self._told:
                self._report()
            self._told = False
            done = yield [(model, fed)]
            if self._fault is not None:
                raise self._fault
            if self.window.outcomes:
                self.actor.read()
                self._take_in()
            self._settle_pass(model, drafted, done.logits[0], tested)
            if self.window.outcomes and self._logits is not None and self.held.queue:
                window += 1  # the next window is at hand, and its first token needs no pass
                self._settle_held(self._logits, tested)
            pass_tokens, own_tokens, pass_ms = done.tokens, len(fed), done.ms
        self._rejected = tested.rejected and not tested.branch and self.window.wait > 0
        self._idle_since = time.monotonic()
        self._report()  # one without a pass
        self._verdict = Verdict(
            session=self.id,
            epoch=self.held.epoch,
            start=start,
            tokens=tuple(self.committed[start:]),
            accepted=tested.accepted,
            rejected=tested.rejected,
            judged=tested.window,
            offset=tested.offset,
            branch=tested.branch,
            window=window,
            pass_tokens=pass_tokens,
            own_tokens=own_tokens,
            pass_ms=pass_ms,
            ended_s=self._idle_since,
            finish=self._finish_reason(),
        )

    def _at_hand(self) -> int:
        """How many drafted tokens a round is to settle: all, or those of one window if others have turns, for whom the
        next one would make the pass longer, though it counts only if this one is accepted whole.
        """
        queue = self.held.queue
        if not queue or not self.actor.shared(self):
            return len(queue)
        return sum(1 for _ in takewhile(lambda waiting: waiting.window == queue[0].window, queue))

    def _settle_held(self, logits: torch.Tensor, tested: Tested) -> None:
        """Holding: settle one token."""
        self._logits = None
        if not self.held.queue:
            self._draw_alone(logits)
            return
        waiting = self.held.queue[0]
        accepted, token = self.coupling.judge(
            logits,
            waiting.token,
            waiting.drafted.proposal,
            position=len(self.committed),
            epoch=self.held.epoch,
        )
        self._commit(token)
        self._count(tested, waiting, int(accepted), None if accepted else token)

    def _settle_pass(self, model: Session, drafted: list[Waiting], rows: torch.Tensor, tested: Tested) -> None:
        """Pending: settle by a pass over the pending token and all drafted ones."""
        accepted, correction = self.coupling.judge_window(
            rows,
            [waiting.token for waiting in drafted],
            [waiting.drafted.proposal for waiting in drafted],
            start=len(self.committed),
            epoch=self.held.epoch,
        )
        for index in range(accepted):
            self._commit(drafted[index].token)
            if self.finished:
                self._count(tested, drafted[index], index + 1)
                return
        if correction is not None:
            self._commit(correction)
            model.truncate(len(self.committed) - 1)
            self._count(tested, drafted[accepted], accepted, correction)
            return
        if drafted:
            self._count(tested, drafted[-1], accepted)
        self._logits = rows[-1]
        if not self.held.queue and (self.mode == "turns" or (self.mode == "alone" and not drafted)):
            self._logits = None
            self._draw_alone(rows[-1])

    def _count(self, tested: Tested, last: Waiting, accepted: int, correction: int | None = None) -> None:
        """Note the outcome of a test, and tell it to the windows: ``last`` is the last tested token."""
        tested.window, tested.offset = last.window, last.offset
        tested.accepted += accepted
        if correction is None:
            self.held.accept(accepted)
        else:
            tested.rejected = True
            tested.branch = self.held.reject(last, correction)

    def _draw_alone(self, logits: torch.Tensor) -> None:
        self._commit(self.coupling.choose(logits, position=len(self.committed), epoch=self.held.epoch))

    def _commit(self, token: int) -> None:
        self.committed.append(token)
        self.finished = self._finish_reason() is not None

    def _finish_reason(self) -> FinishReason | None:
        return finish_reason(self.committed, self.opening.sampling)
