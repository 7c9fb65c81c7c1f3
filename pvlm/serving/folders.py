"""The folder whose files callers may name."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pvlm.serving.references import PARAM
from pvlm.serving.refusals import Refusal, invalid


class MediaFolder:
    """Opens files below one folder, with ``..`` and links resolved.

    The file that was checked is the one that is read: it stays open, and readers get the name of its descriptor.
    """

    def __init__(self, folder: str | None) -> None:
        """``folder``: None allows no file."""
        self._root = None if folder is None else Path(folder).resolve()

    @contextmanager
    def opened(self, path: str) -> Iterator[str]:
        """A path by which this process and its children read the file. Raises Refusal."""
        if self._root is None:
            raise invalid("this server reads no local files (--allowed-local-media-path)", PARAM)
        try:
            real = os.path.realpath(path)
            if not Path(real).is_relative_to(self._root):
                raise self._outside()
            # Not blocked by a pipe without a writer.
            descriptor = os.open(real, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
        except (OSError, ValueError):
            raise invalid("there is no such file below the allowed folder, or it cannot be read", PARAM) from None
        try:
            name = f"/proc/{os.getpid()}/fd/{descriptor}"
            if not Path(os.readlink(name)).is_relative_to(self._root):  # a link was changed meanwhile
                raise self._outside()
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise invalid("the URL names no regular file", PARAM)
            yield name
        finally:
            os.close(descriptor)

    def _outside(self) -> Refusal:
        return invalid("the file is not below the folder that this server may read", PARAM)
