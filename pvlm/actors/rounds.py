"""The rounds of sessions that have something to verify or to write at the same time: their passes are one."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from pvlm.actors.session import ActorSession, Parts, Pass, Round, WorkAbandoned, milliseconds_since
from pvlm.transports import ChannelClosed
from pvlm_protocols.backend import Backend, SharedPasses
from pvlm_protocols.branches import BranchPasses

if TYPE_CHECKING:
    import torch


class Host(Protocol):
    """What the rounds use of the actor."""

    @property
    def backend(self) -> Backend: ...

    def tick(self, *sessions: ActorSession) -> None: ...

    def guarded(self, session_id: int, action: Callable[[], None]) -> None: ...


@dataclass(frozen=True)
class _Wanted:
    """What a session's round wants in a pass."""

    session: ActorSession
    round: Round
    parts: Parts

    @property
    def tokens(self) -> int:
        return sum(len(tokens) for _, tokens in self.parts)


def run_rounds(actor: Host, sessions: Sequence[ActorSession]) -> None:
    """A round of each session. The passes that they want at the same time are one."""
    wanted = [want for session in sessions if (want := _step(actor, session, session.round())) is not None]
    while wanted:
        wanted = [
            want
            for asked, done in _passed(actor, wanted)
            if (want := _step(actor, asked.session, asked.round, done)) is not None
        ]


def _step(actor: Host, session: ActorSession, round: Round, done: Pass | Exception | None = None) -> _Wanted | None:
    """Let a round go on to its next pass, after the last one has ended or failed; None where it ends."""
    wanted: _Wanted | None = None

    def step() -> None:
        nonlocal wanted
        with suppress(StopIteration):
            if done is None:
                parts = next(round)
            elif isinstance(done, Pass):
                parts = round.send(done)
            else:
                parts = round.throw(done)
            wanted = _Wanted(session, round, parts)

    actor.guarded(session.id, step)
    return wanted


def _passed(actor: Host, wanted: Sequence[_Wanted]) -> list[tuple[_Wanted, Pass | Exception]]:
    """One pass over all tokens that are wanted. Where a shared one fails, each session has its own."""
    sessions = [want.session for want in wanted]
    started = time.monotonic()
    try:
        logits = _extend(actor, wanted, lambda: actor.tick(*sessions))
    except WorkAbandoned as abandoned:
        return [(want, abandoned) for want in wanted]
    except ChannelClosed:
        raise
    except Exception as error:
        if len(wanted) > 1:
            return [result for want in wanted for result in _passed(actor, [want])]
        return [(wanted[0], error)]
    if any(rows.is_cuda for rows in logits):  # the pass has only been asked for
        for session in sessions:
            session.meanwhile()
        try:
            _synchronize(logits)
        except Exception as error:
            return [(want, error) for want in wanted]
    ms, tokens = milliseconds_since(started), sum(want.tokens for want in wanted)
    rows = iter(logits)
    return [(want, Pass([next(rows) for _ in want.parts], ms, tokens)) for want in wanted]


def _extend(actor: Host, wanted: Sequence[_Wanted], on_progress: Callable[[], None]) -> list[torch.Tensor]:
    parts = [part for want in wanted for part in want.parts]
    if len(parts) == 1:
        ((model, tokens),) = parts
        return [model.extend(tokens, on_progress=on_progress)]
    if isinstance(actor.backend, SharedPasses):
        return actor.backend.extend_together(parts, on_progress=on_progress)
    assert isinstance(actor.backend, BranchPasses)  # or else one session has a turn, without branches
    return actor.backend.extend_branches(parts, on_progress=on_progress)


def _synchronize(logits: Sequence[torch.Tensor]) -> None:
    """Wait for a pass on GPUs."""
    import torch

    for device in {rows.device for rows in logits}:
        torch.cuda.current_stream(device).synchronize()
