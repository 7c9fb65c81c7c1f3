"""The events that a `Coordinator` takes besides the actors' messages, and the commands that it gives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pvlm_protocols.messages import (
    Began,
    Closed,
    DraftWindow,
    Dying,
    FinishReason,
    FromActor,
    Hello,
    Loading,
    NeedVideo,
    Outcome,
    Pong,
    PrefixesKept,
    Prepared,
    Recalled,
    ToDraft,
    ToTarget,
    Verdict,
)

# ---- events that are no messages ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class DraftGone:
    """The draft actor is lost, and the session with it."""

    reason: str


@dataclass(frozen=True)
class DraftBack:
    """A draft actor runs again. ``shares``: this session may share passes with others."""

    shares: bool = True


@dataclass(frozen=True)
class TargetGone:
    """The target actor is lost; `TargetBack` or `TargetGivenUp` follows."""


@dataclass(frozen=True)
class TargetBack:
    """A target actor runs again. ``shares``: as in `DraftBack`."""

    shares: bool = True


@dataclass(frozen=True)
class TargetGivenUp:
    """The target actor is not started again. ``traceback``: the target's own, or empty."""

    reason: str
    traceback: str = ""


@dataclass(frozen=True)
class StopAfter:
    """The answer is complete with its first ``tokens`` tokens: they contain a stop string."""

    tokens: int


@dataclass(frozen=True)
class Cancelled:
    """The caller has left."""


Event = FromActor | DraftGone | DraftBack | TargetGone | TargetBack | TargetGivenUp | StopAfter | Cancelled

DROPPED: dict[type[Event], str] = {
    Hello: "the supervisor takes it when the actor starts",
    Loading: "the supervisor takes it while the actor starts",
    Pong: "the supervisor takes it",
    Began: "the supervisor takes it, to know whom to blame for the death of a remote worker",
    NeedVideo: "the session at work takes it, and sends the pixels",
    PrefixesKept: "the supervisor takes it, and reports the figures",
    Recalled: "the supervisor takes it when a remote worker is back",
    Dying: "the supervisor takes it; the loss of the actor is an event of its own",
    Closed: "the session at work takes it, and frees the actor",
}
"""Messages of actors that no coordinator handles, and why."""

# ---- commands -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ToDraftActor:
    message: ToDraft


@dataclass(frozen=True)
class ToTargetActor:
    message: ToTarget


@dataclass(frozen=True)
class Emit:
    """Committed tokens, never taken back. The first ``accepted`` of them were drafted; with ``corrected`` the next one
    stands where a drafted token was rejected.
    """

    tokens: tuple[int, ...]
    accepted: int
    corrected: bool = False


@dataclass(frozen=True)
class Progress:
    """The completed share of the target's prefill, 0 to 1."""

    fraction: float


@dataclass(frozen=True)
class PrefillFinished:
    """The target is about to decide the first token."""


@dataclass(frozen=True)
class Finish:
    reason: FinishReason


@dataclass(frozen=True)
class Fail:
    """The session has failed at the target."""

    error: str
    message: str
    traceback: str


# ---- records: what happened, for everybody who counts or draws it --------------------------------------------------


@dataclass(frozen=True)
class WindowTaken:
    """A window of the draft was ``sent`` to the target, or dropped."""

    window: DraftWindow
    sent: bool


@dataclass(frozen=True)
class WindowsPrepared:
    """Of the prepared windows of a message so many were ``kept`` for later verdicts; the others came too late."""

    prepared: Prepared
    kept: int


Found = Literal["", "hit", "late", "miss"]


@dataclass(frozen=True)
class Judged:
    """The tokens of a verdict were committed. A verdict that was dropped has no such record. ``outcome``: the prepared
    window with which the target goes on after a rejection. ``prepared``: whether a rejection, while outcomes are being
    prepared, found its own at the target (hit), under way (late) or not at all (miss); else empty.
    """

    verdict: Verdict
    outcome: Outcome | None = None
    prepared: Found = ""


Record = WindowTaken | WindowsPrepared | Judged
Command = ToDraftActor | ToTargetActor | Emit | Progress | PrefillFinished | Finish | Fail | Record
