"""An optional part of a session: short continuations that share its cache."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from pvlm_protocols.backend import Session


@runtime_checkable
class Branches(Protocol):
    """Optional for a session of a backend with `SharedPasses`: continuations of its prefixes, in one pass with it."""

    def fork(self, length: int, room: int) -> Session:
        """Open a branch that sees the first ``length`` answer tokens of this session, with ``room`` rows of its own.

        Its `Session.length` is ``length`` at first. It offers ``extend``, ``truncate`` (not below ``length``) and
        ``close``, and takes part in shared passes. This session may grow meanwhile. It must keep its first ``length``
        tokens until the branch is closed. Raises ValueError unless ``0 <= length <= self.length``.
        """
        ...

    def adopt(self, branch: Session) -> None:
        """Replace what follows the branch's shared tokens by the branch's own, without a pass, and close the branch."""
        ...
