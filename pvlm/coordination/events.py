"""What goes into a `Coordinator` beside the actors' messages, and what comes out of it."""

from __future__ import annotations

from dataclasses import dataclass

from pvlm_protocols.messages import FinishReason, FromActor, ToDraft, ToTarget

# ---- events that are no messages ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class DraftGone:
    """The draft actor is gone, or has given this session up."""

    reason: str


@dataclass(frozen=True)
class DraftBack:
    """There is a draft actor again."""


@dataclass(frozen=True)
class TargetGone:
    """The target actor is gone; `TargetBack` or `TargetGivenUp` follows."""


@dataclass(frozen=True)
class TargetBack:
    """There is a target actor again."""


@dataclass(frozen=True)
class TargetGivenUp:
    """The target actor is not started again. ``traceback``: its own of what it failed from, or empty."""

    reason: str
    traceback: str = ""


@dataclass(frozen=True)
class Cancelled:
    """The caller has left."""


@dataclass(frozen=True)
class StopAfter:
    """The answer is complete with its first ``tokens`` tokens: they contain a stop string."""

    tokens: int


Event = FromActor | DraftGone | DraftBack | TargetGone | TargetBack | TargetGivenUp | StopAfter | Cancelled

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
    """The target's prefill has come so far, 0 to 1."""

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


Command = ToDraftActor | ToTargetActor | Emit | Progress | PrefillFinished | Finish | Fail
