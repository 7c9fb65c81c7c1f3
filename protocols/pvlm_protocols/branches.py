"""An optional part of a session: short continuations that share its cache."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from pvlm_protocols.backend import Session

if TYPE_CHECKING:
    import torch


@runtime_checkable
class Branches(Protocol):
    """Optional for a session of a backend with `SharedPasses` or `BranchPasses`: continuations of its prefixes, in one
    pass with it.
    """

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


@runtime_checkable
class BranchPasses(Protocol):
    """Optional for a backend without `SharedPasses`: one pass over tokens of a session and its branches."""

    def extend_branches(
        self,
        parts: Sequence[tuple[Session, Sequence[int]]],
        *,
        on_progress: Callable[[], None] | None = None,
    ) -> list[torch.Tensor]:
        """As `SharedPasses.extend_together`, for one session and its branches, or some of these. Raises ValueError for
        branches of different sessions.
        """
        ...
