"""The committed text of one session, and what the draft wrote after it."""

from __future__ import annotations

from collections.abc import Sequence

from pvlm.speculation.text import agreement


class Text:
    """``committed``: the answer's settled tokens. ``line``: the committed prefix at the last rollback and the draft's
    windows after it. ``epoch``: rises whenever the draft has to leave its line.
    """

    def __init__(self, committed: Sequence[int], epoch: int) -> None:
        self.committed = list(committed)
        self.line = list(committed)
        self.epoch = epoch

    def parted(self, start: int) -> bool:
        """Do line and committed text differ at position ``start`` or later?"""
        end = min(len(self.line), len(self.committed))
        return agreement(self.line[start:end], self.committed[start:end]) < end - start

    @property
    def ahead(self) -> int:
        """By how many tokens the line is longer than the committed text (negative: shorter)."""
        return len(self.line) - len(self.committed)

    def restart(self) -> int:
        """Begin a new line from the committed text, in a new epoch. Returns how many tokens of the old line stay."""
        keep = agreement(self.line, self.committed)
        self.line = list(self.committed)
        self.epoch += 1
        return keep
