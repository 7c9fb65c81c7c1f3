"""What a backend may offer beside `pvlm_protocols.backend`: the beginning of a prompt outlives its session."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

from pvlm_protocols.backend import Prompt, Session


class KeptPrefix(Protocol):
    """Rows of the beginning of a prompt. They outlive their session, and the sessions that are opened on them share
    them. Nothing changes them.
    """

    @property
    def key(self) -> bytes:
        """Equal for equal beginnings only: the same token ids, and the same content of videos and images."""
        ...

    @property
    def tokens(self) -> int:
        """Tokens of the unpruned prompt that it covers."""
        ...

    @property
    def nbytes(self) -> int:
        """Memory of its own, in bytes, without that of ``parent``."""
        ...

    @property
    def parent(self) -> KeptPrefix | None:
        """A shorter prefix, whose rows come before its own; None if all rows are its own."""
        ...

    @property
    def early_layer(self) -> int | None:
        """The layer of the early states that it has of its video tokens; None if it has none."""
        ...


class PrefixSession(Session, Protocol):
    """A session that was opened by `KeptPrefixes.open_on`."""

    @property
    def cached_tokens(self) -> int:
        """Tokens of the unpruned prompt that a kept prefix covers; 0 without one."""
        ...

    @property
    def cached_video_tokens(self) -> int:
        """Those of them that are prunable video tokens."""
        ...

    @property
    def prompt_rows(self) -> int:
        """Rows of the prompt in the cache, those of the kept prefix included; 0 before the prefill."""
        ...

    def prefixes(self) -> Sequence[KeptPrefix]:
        """After the prefill: the beginnings of the prompt that may be kept, each the parent of the next.

        Those that the session was opened on are among them. They stay valid when the session is closed.
        """
        ...


@runtime_checkable
class KeptPrefixes(Protocol):
    """Optional for a backend: the beginning of a prompt is kept after its session, and other sessions start on it.

    A beginning ends where the text of a user's turn begins. Logits on a kept prefix are those of a session without one.
    """

    def open_on(
        self,
        prompt: Prompt,
        capacity: int,
        find: Callable[[bytes], KeptPrefix | None],
        on_progress: Callable[[], None],
    ) -> PrefixSession:
        """Open a session on the longest kept beginning of the prompt; otherwise as `InterruptibleOpening`.

        ``find`` gets the keys of the beginnings, the longest first, until it returns a prefix. The vision tower runs
        over what the prefix does not cover, and so does the prefill. There ``keep`` counts only for the video tokens
        after the prefix; before that it is as it was. Early states are of the whole prompt: with ``on_early_layer``,
        ``find`` must return only prefixes with that ``early_layer``. Raises FramesMissing.
        """
        ...
