"""Branches of a session: short continuations that share its cache."""

from __future__ import annotations

from abc import abstractmethod
from typing import Self

from pvlm_protocols.backend import Session

from .session import CachedSession


class BranchingSession(CachedSession):
    """A session that offers `pvlm_protocols.branches.Branches`. A subclass makes a branch (`_new_branch`), and takes
    over the rows of one (`_take_rows`).
    """

    _trunk: Self | None = None
    """The session that this one is a branch of."""
    _shared = 0
    """Answer tokens that a branch shares with its trunk."""

    def fork(self, length: int, room: int) -> Self:
        """See `pvlm_protocols.branches.Branches`. Raises ValueError unless ``0 <= length <= self.length``."""
        self._check_open()
        if self._trunk is not None or not 0 <= length <= self._length:
            raise ValueError(f"cannot branch off after {length} answer tokens: the cache holds {self._length}")
        capacity = min(length + room, self._capacity)
        branch = self._new_branch(capacity, capacity - length)
        branch._trunk, branch._shared = self, length
        branch._length, branch._prompt_rows = length, self._prompt_rows
        branch._first_position = self._first_position
        return branch

    def adopt(self, branch: Session) -> None:
        """See `pvlm_protocols.branches.Branches`. Raises ValueError for the branch of another session."""
        self._check_open()
        if not isinstance(branch, type(self)) or branch._trunk is not self:
            raise ValueError("a session adopts its own branches only")
        branch._check_open()
        self.truncate(branch._shared)
        if branch._length > branch._shared:
            self._take_rows(branch, branch._length - branch._shared)
        self._length = branch._length
        branch.close()

    def truncate(self, length: int) -> None:
        """As `CachedSession.truncate`; a branch keeps the tokens that it shares."""
        if length < self._shared:
            raise ValueError(f"a branch after {self._shared} answer tokens cannot be truncated to {length}")
        super().truncate(length)

    @abstractmethod
    def _new_branch(self, capacity: int, room: int) -> Self:
        """A session of this model for ``capacity`` answer tokens, with ``room`` rows of its own."""

    @abstractmethod
    def _take_rows(self, branch: Self, count: int) -> None:
        """Copy a branch's own ``count`` rows into this session's cache, after its last row."""
