"""When the target goes on alone, and when the draft is probed."""

from __future__ import annotations

REST_TOKENS = 16
"""Tokens that the target first writes alone where a draft does not pay; doubled each time, up to `REST_TOKENS_MAX`."""
REST_TOKENS_MAX = 64


class Resting:
    """``alone``: the target goes on by itself. ``probing``: the draft's next window is compared with what it wrote."""

    def __init__(self) -> None:
        self.alone = False
        self.probing = False
        self.rest_tokens = REST_TOKENS
        self._until = 0

    def rest(self, length: int) -> None:
        """The target goes on alone from an answer length, and for a while nobody asks the draft."""
        self.alone, self.probing = True, False
        self._until = length + self.rest_tokens
        self.rest_tokens = min(2 * self.rest_tokens, REST_TOKENS_MAX)

    def probe(self) -> None:
        """The target goes on alone until the draft's next window is there."""
        self.alone = self.probing = True

    def over(self, length: int) -> bool:
        """Has the target written enough alone for a probe?"""
        return not self.probing and length >= self._until

    def end(self) -> None:
        """Draft and target work together."""
        self.alone = self.probing = False
        self.rest_tokens = REST_TOKENS
