"""Videos that callers named by a ``uuid``, kept for their next questions."""

from __future__ import annotations

from pvlm.video.kept import Kept

Name = tuple[str, str, str]
"""Who brought it (the API key), the caller's ``cache_salt``, and the ``uuid``. So nobody reaches another caller's video
by guessing its ``uuid``."""


class KeptMedia(Kept[Name, bytes]):
    """The bytes of videos and images."""

    def __init__(self, max_bytes: int) -> None:
        super().__init__(max_bytes, len)
