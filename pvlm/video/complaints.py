"""Damage that a decoder only prints.

FFmpeg conceals damage: it returns a frame with invented pixels and writes a message at its error level. That message is
the only evidence. PyAV hands messages over (`Messages`); decord's own FFmpeg writes them to the standard error stream
(`witness`).
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self

from pvlm.video.anonymous import anonymous_file, read_all, write_all

_PRINTED = re.compile(r"^\[(?P<component>[\w,.\-/ ]+) @ 0x[0-9a-f]+\] (?P<text>.+)$", re.MULTILINE)

_HARMLESS = re.compile(
    r"mmco: unref short failure"  # drops a reference that does not exist: nothing is missing
    r"|Could not find codec parameters for stream"  # another stream than the decoded one
    r"|Referenced QT chapter track not found"
)

_GRAVE_WARNING = re.compile(r"timescale not set|STSC entry \d+ is invalid")
"""Warnings about an index that leave its frames without their times."""

_OTHER_STREAMS = re.compile(
    r"^(aac|mp[123]\w*|ac3|eac3|opus|vorbis|flac|alac|pcm\w*|amr\w*|dca|truehd|wma\w*|srt|ass|mov_text|subrip)$"
)
"""Decoders of sound and subtitles: damage there leaves the frames intact."""


class Messages:
    """FFmpeg's messages from all threads while it is open, by PyAV; a context manager."""

    def __init__(self) -> None:
        from av import logging

        logging.set_level(logging.WARNING)
        logging.set_skip_repeated(False)
        self._error_level = logging.ERROR
        self._capture = logging.Capture(local=False)
        self._found: list[tuple[int, str, str]] = []

    def __enter__(self) -> Self:
        self._found = self._capture.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        arguments: Any = (kind, error, traceback)
        self._capture.__exit__(*arguments)

    def complaints(self) -> list[str]:
        """Messages that cast doubt on frames that were decoded from the start."""
        return [
            f"{component}: {text.strip()}"
            for level, component, text in self._found
            if (level <= self._error_level or _GRAVE_WARNING.search(text))
            and not _HARMLESS.search(text)
            and not _OTHER_STREAMS.match(component)
        ]


class Witness:
    """Text that was written to the standard error stream while `witness` was open."""

    def __init__(self) -> None:
        self.text = ""

    def lines(self) -> list[str]:
        """FFmpeg's messages at its error level, without addresses, and without those about sound and subtitles."""
        found = ((match["component"], match["text"].strip()) for match in _PRINTED.finditer(self.text))
        return [f"{component}: {text}" for component, text in found if not _OTHER_STREAMS.match(component)]

    def complaints(self) -> list[str]:
        """Messages that cast doubt on frames that were decoded from the start."""
        return [line for line in self.lines() if not _HARMLESS.search(line)]


def summary(complaints: list[str]) -> str:
    """The first message, and how many more there are."""
    more = f" (and {len(complaints) - 1} more)" if len(complaints) > 1 else ""
    return f"it is damaged: the decoder says {complaints[0]!r}{more}"


@contextmanager
def witness() -> Iterator[Witness]:
    """Divert file descriptor 2, which native code writes to; the result has the text when the block ends.

    The text is then written to the real stream. The diversion is process-wide: use it in a process of its own.
    """
    found = Witness()
    sys.stderr.flush()
    saved = os.dup(2)
    with anonymous_file() as fd:
        os.dup2(fd, 2)
        try:
            yield found
        finally:
            sys.stderr.flush()
            os.dup2(saved, 2)
            os.close(saved)
            text = read_all(fd)
            found.text = text.decode(errors="replace")
            write_all(2, text[: 1 << 14])
