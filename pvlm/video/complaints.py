"""Damage that a decoder only prints.

FFmpeg conceals damage: it returns a frame with invented pixels and writes a line to the standard error stream. That
line is the only evidence.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from pvlm.video.anonymous import anonymous_file, read_all, write_all

_MESSAGE = re.compile(r"^\[(?P<component>[\w,.\-/ ]+) @ 0x[0-9a-f]+\] (?P<text>.+)$", re.MULTILINE)

_HARMLESS = re.compile(
    r"mmco: unref short failure"  # drops a reference that does not exist: nothing is missing
    r"|Could not find codec parameters for stream"  # another stream than the decoded one
)

_OTHER_STREAMS = re.compile(
    r"^(aac|mp[123]\w*|ac3|eac3|opus|vorbis|flac|alac|pcm\w*|amr\w*|dca|truehd|wma\w*|srt|ass|mov_text|subrip)$"
)
"""Decoders of sound and subtitles: damage there leaves the frames intact."""


class Witness:
    """Text that was written to the standard error stream while `witness` was open."""

    def __init__(self) -> None:
        self.text = ""

    def lines(self) -> list[str]:
        """FFmpeg's messages at its error level, without addresses, and without those about sound and subtitles."""
        found = ((match["component"], match["text"].strip()) for match in _MESSAGE.finditer(self.text))
        return [f"{component}: {text}" for component, text in found if not _OTHER_STREAMS.match(component)]

    def complaints(self) -> list[str]:
        """Messages that cast doubt on frames that were decoded from the start."""
        return [line for line in self.lines() if not _HARMLESS.search(line)]


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
