"""How long a draft rests that does not pay. Imports no torch."""

from __future__ import annotations

FIRST_REST, LONGEST_REST = 16, 256
"""Tokens of the first rest of a draft; each further one is twice as long, up to the second."""

LONGEST_HOPELESS_REST = 1024
"""The same where drafting would not pay either if every drafted token were accepted: the next video changes nothing."""

EARLIEST_END = 0.25
"""The share of a rest after which it may end."""

LONG_REST = 64
"""An answer that begins with so much of a hopeless rest still to come does not need the draft at once."""


class Rest:
    """Counts the tokens that the target writes alone while the draft rests. The answers of one policy share it, so that
    the next answer does not begin with short rests anew.

    A rest is as short as the first again once draft and target have worked together; after a hopeless one, once they
    have done so for as long as the next rest would have been. A hopeless try that paid for a moment does not count.
    A rest that is not hopeless may end early, after `EARLIEST_END` of it.
    """

    def __init__(self, first: int = FIRST_REST) -> None:
        self._first = self._next = first
        self._length = self._left = self._worked = 0
        self._hopeless = False

    def begin(self, *, hopeless: bool = False) -> None:
        """Rest from now on, unless another answer has begun a rest that is not over. ``hopeless``: no acceptance rate
        makes drafting pay.
        """
        if self.over:
            longest = LONGEST_HOPELESS_REST if hopeless else LONGEST_REST
            self._length = self._left = min(self._next, longest)
            self._next = min(2 * self._next, longest)
        self._worked, self._hopeless = 0, hopeless

    def wrote_alone(self, tokens: int) -> None:
        """The target wrote so many tokens by itself."""
        self._left = max(0, self._left - tokens)

    def wrote_together(self, tokens: int) -> None:
        """Draft and target wrote so many tokens together, which paid."""
        self._left = 0
        self._worked += tokens
        if not self._hopeless or self._worked >= self._next:
            self._next = self._first

    def end(self) -> None:
        """Try the draft now."""
        self._left = 0

    @property
    def may_end(self) -> bool:
        """May it end if drafting has come to pay again?"""
        return self.over or (not self._hopeless and self._left <= (1 - EARLIEST_END) * self._length)

    @property
    def over(self) -> bool:
        """Has the target written enough tokens alone?"""
        return self._left == 0

    @property
    def long(self) -> bool:
        """Is it hopeless, with so much of it to come that an answer had better begin without the draft?"""
        return self._hopeless and self._left >= LONG_REST
