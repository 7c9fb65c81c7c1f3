"""The header of a video file, read without a decoder."""

from __future__ import annotations

import os
import stat

from pvlm.errors import VideoError
from pvlm.video.mp4 import TOP_LEVEL_BOXES, Mp4Index, read_index

_PLAYLISTS = (b"#EXTM3U", b"ffconcat", b"<?xml", b"<MPD")


def check_file(path: str, name: str) -> Mp4Index | None:
    """Check a file before a decoder opens it. Returns the index of an MP4 or MOV file with exactly one video track.

    Raises VideoError (for ``name``) if the file is missing, unreadable, empty or no regular file; a playlist, which
    would make the decoder open other files; a cut-off or damaged MP4 file; or a container that decord reads wrongly.
    """
    try:
        status = os.stat(path)
        if stat.S_ISDIR(status.st_mode):
            raise VideoError(name, "it is a directory, not a file")
        if not stat.S_ISREG(status.st_mode):
            raise VideoError(name, "it is not a regular file")
        if status.st_size == 0:
            raise VideoError(name, "the file is empty")
        with open(path, "rb") as file:
            head = file.read(1024)
            if head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(_PLAYLISTS):
                raise VideoError(name, "it is a playlist or a text file, not a video; give the video file itself")
            if len(head) > 376 and head[0] == head[188] == head[376] == 0x47:
                raise VideoError(
                    name, "MPEG transport streams have no index; make an mp4 of it: ffmpeg -i INPUT -c copy OUTPUT.mp4"
                )
            if len(head) >= 8 and head[4:8] in TOP_LEVEL_BOXES:
                return read_index(file, status.st_size, name)
            needed = _riff_size(head) or _matroska_size(head)
            if needed > status.st_size:
                raise VideoError(name, f"the file was cut off: it should have {needed} bytes, it has {status.st_size}")
            return None
    except FileNotFoundError:
        raise VideoError(name, "there is no such file") from None
    except OSError as error:
        raise VideoError(name, f"the file cannot be opened: {error.strerror or error}") from error


def _riff_size(head: bytes) -> int:
    """Length of an AVI file in bytes by its header (of its first part beyond 1 GiB); 0 if unknown or no AVI file."""
    if len(head) < 12 or head[:4] != b"RIFF":
        return 0
    size = int.from_bytes(head[4:8], "little")
    return 8 + size if size else 0


def _matroska_size(head: bytes) -> int:
    """Length of a Matroska or WebM file in bytes, by the size of its segment (RFC 8794); 0 if unknown."""
    if head[:4] != b"\x1a\x45\xdf\xa3":
        return 0
    size, width = _ebml_number(head[4:12])
    segment = 4 + width + size
    if not width or head[segment : segment + 4] != b"\x18\x53\x80\x67":
        return 0
    size, width = _ebml_number(head[segment + 4 : segment + 12])
    unknown = width and size == (1 << 7 * width) - 1
    return 0 if unknown or not width else segment + 4 + width + size


def _ebml_number(data: bytes) -> tuple[int, int]:
    """A number of variable length, and its width in bytes (0: invalid)."""
    width = 9 - data[0].bit_length() if data and data[0] else 0
    if not width or len(data) < width:
        return 0, 0
    return int.from_bytes(data[:width], "big") & ((1 << 7 * width) - 1), width
