"""The states and modes of a session."""

from __future__ import annotations

from enum import Enum, auto

from pvlm_protocols.messages import TargetMode


class State(Enum):
    """Life of a session. NEW -> PREFILLING -> DECODING -> FINISHED; while the target is lost RECOVERING, and then
    PREFILLING again; FAILED is reached from every state but FINISHED.
    """

    NEW = auto()
    PREFILLING = auto()
    DECODING = auto()
    RECOVERING = auto()
    FINISHED = auto()
    FAILED = auto()


class Mode(Enum):
    """Who works, and who waits for whom. `docs/concepts/architecture.md` has the table of transitions."""

    TURNS = "turns"
    """Plain speculative decoding: the draft writes a window, then the target verifies it and adds a token."""
    TOGETHER = "together"
    """The draft writes the next window while the target verifies the last one."""
    ALONE = "alone"
    """The target decodes by itself. The draft rests, or has been lost."""
    PROBING = "probing"
    """The target decodes by itself until the draft's next window arrives, which is then compared with its text."""

    @property
    def of_target(self) -> TargetMode:
        """What the target does in this mode."""
        match self:
            case Mode.TURNS:
                return "turns"
            case Mode.TOGETHER:
                return "together"
            case Mode.ALONE | Mode.PROBING:
                return "alone"
