"""The states and modes of a session, and how long the draft rests."""

from __future__ import annotations

from enum import Enum, auto

from pvlm.speculation.windows import REST_TOKENS, REST_TOKENS_MAX, WindowPolicy
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


class Rest:
    """How long the draft rests: longer each time, until draft and target work together again.

    The policy keeps the length, so that the next answer does not begin with short rests anew.
    """

    def __init__(self, policy: WindowPolicy) -> None:
        self._policy = policy
        self._until = 0

    def begin(self, length: int) -> None:
        """Rest from an answer of ``length`` tokens on."""
        self._until = length + self._policy.rest_tokens
        self._policy.rest_tokens = min(2 * self._policy.rest_tokens, REST_TOKENS_MAX)

    def over(self, length: int) -> bool:
        """Has the target written enough tokens alone?"""
        return length >= self._until

    def reset(self) -> None:
        """The next rest is a short one."""
        self._policy.rest_tokens = REST_TOKENS
