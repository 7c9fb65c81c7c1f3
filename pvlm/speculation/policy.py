"""What chooses the windows of a session while it decodes. Imports no torch."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple, Protocol

from pvlm.speculation.rest import Rest
from pvlm_protocols.messages import TargetMode

Way = TargetMode | Literal["prepared"]
"""How tokens are written: as the target's mode says, or together with prepared outcomes."""


class WindowChoice(NamedTuple):
    """``gamma`` tokens a window; after a rejection the target waits for ``wait`` (k) drafted tokens before its next
    pass.

    ``patience_ms``: how long that wait may last (0 where ``wait`` is 0): until stepping alone would have been as good,
    and one drafted token more, for the draft may have been in the middle of one. ``speedup``: predicted against plain
    decoding, None before there are measurements. ``pays``: whether that is enough for drafting to pay. ``hopeless``:
    drafting would not pay either if every drafted token were accepted. ``turns``: draft and target take turns; else the
    draft writes further windows meanwhile. ``outcomes``: how many other tokens the draft prepares for at each offset of
    a window (see `Window`).
    """

    gamma: int
    wait: int = 0
    patience_ms: float = 0.0
    speedup: float | None = None
    pays: bool = True
    hopeless: bool = False
    turns: bool = False
    outcomes: tuple[int, ...] = ()


class WindowPolicy(Protocol):
    """Learns from one session, and chooses its next window.

    ``patient``: the target waits for the draft's first window without a limit. ``baselined``: the policy knows how fast
    the target is alone, or does not ask. ``rest``: how long the draft rests where it does not pay.
    """

    patient: bool
    rest: Rest

    @property
    def baselined(self) -> bool: ...

    def observe_pass(self, n_tokens: int, ms: float) -> None:
        """The target took ``ms`` for a pass over ``n_tokens`` new tokens, of all sessions that shared it."""
        ...

    def observe_sessions(self, sessions: int, *, shared: bool) -> None:
        """From now on the target decodes so many sessions at once, this one included; ``shared``: in passes that they
        share.
        """
        ...

    def observe_sharing(self, n_tokens: int, own_tokens: int) -> None:
        """Of the ``n_tokens`` of a pass over a window, ``own_tokens`` were those of this session."""
        ...

    def observe_draft(self, ms_per_token: float) -> None:
        """The draft took this time for each token of a window."""
        ...

    def observe_lag(self, ms: float) -> None:
        """This time passed between a rejection and the start of the draft's new window."""
        ...

    def observe_transit(self, ms: float) -> None:
        """This time passed between the end of a window that the target was waiting for and its pass."""
        ...

    def observe_coordination(self, ms: float) -> None:
        """The target lost this time before a pass that had to wait for nothing."""
        ...

    def observe_pace(self, mode: TargetMode, tokens: int, ms: float) -> None:
        """The target wrote ``tokens`` tokens in ``ms``, gaps included. ``mode``: what it did."""
        ...

    def observe_tested(self, accepted: int, rejected: int) -> None:
        """These drafted tokens were tested, in this order. Tokens after a rejection are not tested."""
        ...

    def observe_branches(self, beside: float, ms: float) -> None:
        """A step of the draft over the line and ``beside`` branches took ``ms``."""
        ...

    def observe_outcome(self, rank: int | None, prepared: int) -> None:
        """At a rejected position ``prepared`` of the draft's other tokens were prepared for; ``rank`` was the target's
        (None: none of them).
        """
        ...

    def choice(self) -> WindowChoice: ...


class FixedWindow:
    """Always ``n`` tokens. After a rejection the target waits at most ``patience_ms`` for ``wait`` drafted tokens."""

    patient = True
    baselined = True

    def __init__(self, n: int, wait: int = 0, patience_ms: float = math.inf, outcomes: tuple[int, ...] = ()) -> None:
        if n < 1 or not 0 <= wait <= n:
            raise ValueError(f"a window of {n} tokens, of which {wait} are waited for")
        self._choice = WindowChoice(n, wait, patience_ms if wait else 0.0, outcomes=outcomes)
        self.rest = Rest()

    def observe_pass(self, n_tokens: int, ms: float) -> None:
        pass

    def observe_sessions(self, sessions: int, *, shared: bool) -> None:
        pass

    def observe_sharing(self, n_tokens: int, own_tokens: int) -> None:
        pass

    def observe_draft(self, ms_per_token: float) -> None:
        pass

    def observe_lag(self, ms: float) -> None:
        pass

    def observe_transit(self, ms: float) -> None:
        pass

    def observe_coordination(self, ms: float) -> None:
        pass

    def observe_pace(self, mode: TargetMode, tokens: int, ms: float) -> None:
        pass

    def observe_tested(self, accepted: int, rejected: int) -> None:
        pass

    def observe_branches(self, beside: float, ms: float) -> None:
        pass

    def observe_outcome(self, rank: int | None, prepared: int) -> None:
        pass

    def choice(self) -> WindowChoice:
        return self._choice
