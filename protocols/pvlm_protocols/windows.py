"""Windows of the draft: their sizes, and the continuations that it prepares for their likely outcomes."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from pvlm_protocols.limits import MAX_RANKS, MAX_WINDOW
from pvlm_protocols.numbers import Milliseconds, Position, Serial, Token, WindowSize, WindowTokens
from pvlm_protocols.turns import Seconds


class Window(msgspec.Struct, frozen=True, kw_only=True):
    """``gamma`` tokens a window; ``wait`` tokens (k) in the first window after a rejection, for which the target waits
    (0: it steps alone at once), at most ``patience_ms``. ``ahead``: the draft does not wait for a verdict to begin one.

    ``outcomes``: how many other tokens the draft prepares for at each offset of a window, the position after it
    included (empty: none). Offsets beyond the last entry have none.
    """

    gamma: WindowSize
    wait: Annotated[int, Meta(ge=0, le=MAX_WINDOW)] = 0
    patience_ms: Milliseconds = 0.0
    ahead: bool = True
    outcomes: Annotated[tuple[Annotated[int, Meta(ge=0, le=MAX_RANKS)], ...], Meta(max_length=MAX_WINDOW + 1)] = ()


class Stopped(msgspec.Struct, frozen=True, kw_only=True):
    """``tokens`` drafted tokens, the first at position ``start``, that a rollback stopped before their window was sent
    (0: in the middle of the first). ``draft_ms`` and ``ended_s`` as in `DraftWindow`.
    """

    epoch: Serial
    start: Position
    tokens: Annotated[int, Meta(ge=0, le=MAX_WINDOW)]
    draft_ms: Milliseconds
    ended_s: Seconds


class Parent(msgspec.Struct, frozen=True, kw_only=True):
    """The prefix that a prepared window continues: the first ``offset`` tokens of another window, and then ``token``,
    which the other window does not have there. ``start``: the position of ``token``.
    """

    window: Serial
    offset: Annotated[int, Meta(ge=0, le=MAX_WINDOW)]
    token: Token
    start: Position


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """A window ``id`` that is prepared for a likely verdict. ``rank``: which of the draft's other tokens the verdict is
    expected to choose, 0 for the likeliest.
    """

    id: Serial
    parent: Parent
    rank: Annotated[int, Meta(ge=0, le=MAX_RANKS - 1)]
    tokens: WindowTokens

    @property
    def start(self) -> int:
        """The position of the first of ``tokens``."""
        return self.parent.start + 1
