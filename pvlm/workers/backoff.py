"""Growing pauses between attempts."""

from __future__ import annotations


class Backoff:
    """Pauses between attempts that fail: ``first_s``, doubled each time, at most ``longest_s``."""

    def __init__(self, first_s: float, longest_s: float) -> None:
        self._first_s = first_s
        self._longest_s = longest_s
        self.next_s = first_s
        """The pause after the next failure, in seconds."""

    def take(self) -> float:
        """Return the pause for a failure."""
        pause_s, self.next_s = self.next_s, min(2 * self.next_s, self._longest_s)
        return pause_s

    def reset(self) -> None:
        """An attempt has succeeded."""
        self.next_s = self._first_s
