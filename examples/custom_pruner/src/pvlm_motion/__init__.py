"""A pruner for pvlm that keeps what moves. See the README."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from torch import Tensor

    from pvlm_protocols.backend import EarlyStates


class MotionPruner:
    """Keep the video tokens that changed most since the same place a frame earlier.

    The first frame has no frame before it, and is kept first.
    """

    name: ClassVar[str] = "motion"
    needs_states: ClassVar[bool] = True
    needs_attention: ClassVar[bool] = False

    def select(self, m: int, keep: int, states: EarlyStates | None, seed: int) -> Tensor:
        """bool ``(m,)`` with ``keep`` tokens set. Of equal changes the lower index is kept."""
        import torch  # here, for an engine imports this module to check it

        assert states is not None  # needs_states says so
        frames = states.video_first.float().cpu().unflatten(0, (states.frames, -1))
        change = torch.full(frames.shape[:2], torch.inf)
        change[1:] = (frames[1:] - frames[:-1]).norm(dim=-1)
        kept = change.flatten().sort(descending=True, stable=True).indices[:keep]
        mask = torch.zeros(m, dtype=torch.bool)
        mask[kept] = True
        return mask
