"""Containers: what a file is by its first bytes, and whether it is whole by its sizes.

A decoder that guesses the format can be led to open other files: a playlist names them. So this module has the list of
what is read, and FFmpeg gets the format's name from here.
"""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import BinaryIO

from pvlm.errors import VideoError

_HEAD_BYTES = 4096
_TOP_LEVEL_BOXES = frozenset(b"ftyp moov mdat free skip wide moof mfra styp sidx pnot uuid".split())


@dataclass(frozen=True)
class Container:
    """What a file is.

    ``demuxer``: FFmpeg's name of the format, ``""`` for pictures. ``offset``: bytes of tags before it. ``indexed``: the
    container lists its frames, one packet each, so a missing one is damage.
    """

    name: str
    demuxer: str
    offset: int = 0
    indexed: bool = False

    @property
    def is_picture(self) -> bool:
        """Whether Pillow reads it: a still picture, or an animated WebP, PNG or AVIF."""
        return not self.demuxer


def check_file(path: str, name: str) -> None:
    """Raise VideoError (for ``name``) if a file is missing, unreadable, empty or no regular file."""
    try:
        status = os.stat(path)
        if stat.S_ISDIR(status.st_mode):
            raise VideoError(name, "it is a directory, not a file")
        if not stat.S_ISREG(status.st_mode):
            raise VideoError(name, "it is not a regular file")
        if status.st_size == 0:
            raise VideoError(name, "the file is empty")
        with open(path, "rb"):
            pass
    except FileNotFoundError:
        raise VideoError(name, "there is no such file") from None
    except OSError as error:
        raise VideoError(name, f"the file cannot be opened: {error.strerror or error}") from error


def recognize(path: str) -> Container:
    """The container of a file. Raises VideoError for anything that is not in the list, and for a file that was cut off
    where the container says how long it should be.
    """
    check_file(path, path)
    with open(path, "rb") as file:
        return container_of(file, os.fstat(file.fileno()).st_size, path)


def container_of(file: BinaryIO, size: int, name: str) -> Container:
    """As `recognize`, of an open file of ``size`` bytes."""
    offset = _tags(file)
    file.seek(offset)
    head = file.read(_HEAD_BYTES)
    found = next(((kind, demuxer) for kind, demuxer, fits in _KNOWN if fits(head)), None)
    if found is None:
        raise VideoError(name, _unknown(head))
    kind, demuxer = found
    if demuxer == "mov":
        _check_boxes(file, offset, size, name)
    elif (needed := offset + (_riff_size(head) or _matroska_size(head))) > size:
        raise VideoError(name, f"the file was cut off: it should have {needed} bytes, it has {size}")
    return Container(kind, demuxer, offset, indexed=demuxer == "mov")


def _starts(*magics: bytes) -> Callable[[bytes], bool]:
    return lambda head: head.startswith(magics)


def _riff(kind: bytes) -> Callable[[bytes], bool]:
    return lambda head: head[:4] == b"RIFF" and head[8:12] == kind


def _packets_of(size: int, sync: int) -> Callable[[bytes], bool]:
    """A transport stream: a byte 0x47 at the same place of each packet."""
    return lambda head: len(head) > sync + 2 * size and all(head[sync + k * size] == 0x47 for k in range(3))


def _annex_b(*headers: int) -> Callable[[bytes], bool]:
    """A raw stream of NAL units that begins with one of these bytes."""
    starts = tuple(code + bytes([header]) for code in (b"\0\0\1", b"\0\0\0\1") for header in headers)
    return lambda head: head.startswith(starts)


def _brand(*brands: bytes) -> Callable[[bytes], bool]:
    return lambda head: head[4:8] == b"ftyp" and head[8:12] in brands


_KNOWN: tuple[tuple[str, str, Callable[[bytes], bool]], ...] = (
    ("AVIF", "", _brand(b"avif", b"avis")),
    ("HEIF", "", _brand(b"heic", b"heix", b"heim", b"heis", b"mif1")),
    ("mp4", "mov", lambda head: len(head) >= 8 and head[4:8] in _TOP_LEVEL_BOXES),
    ("Matroska", "matroska", _starts(b"\x1a\x45\xdf\xa3")),
    ("AVI", "avi", _riff(b"AVI ")),
    ("WebP", "", _riff(b"WEBP")),
    ("FLV", "flv", _starts(b"FLV\x01")),
    ("MPEG program stream", "mpeg", _starts(b"\0\0\1\xba")),
    ("MPEG transport stream", "mpegts", _packets_of(188, 0)),
    ("MPEG transport stream", "mpegts", _packets_of(192, 4)),
    ("Ogg", "ogg", _starts(b"OggS")),
    ("GIF", "gif", _starts(b"GIF87a", b"GIF89a")),
    ("ASF", "asf", _starts(bytes.fromhex("3026b2758e66cf11"))),
    ("MXF", "mxf", _starts(bytes.fromhex("060e2b34020501010d010201"))),
    ("IVF", "ivf", _starts(b"DKIF")),
    ("raw AV1", "obu", _starts(b"\x12\0\x0a")),
    ("YUV4MPEG", "yuv4mpegpipe", _starts(b"YUV4MPEG2 ")),
    ("raw MPEG-1 or MPEG-2", "mpegvideo", _starts(b"\0\0\1\xb3")),
    ("raw MPEG-4", "m4v", _starts(b"\0\0\1\xb0", b"\0\0\1\x00")),
    ("raw H.264", "h264", _annex_b(0x67, 0x27, 0x47, 0x09, 0x06, 0x26)),
    ("raw HEVC", "hevc", _annex_b(0x40, 0x46, 0x4E)),
    ("JPEG", "", _starts(b"\xff\xd8\xff")),
    ("PNG", "", _starts(b"\x89PNG\r\n\x1a\n")),
    ("BMP", "", lambda head: head[:2] == b"BM" and head[6:10] == bytes(4)),
    ("TIFF", "", _starts(b"II*\0", b"MM\0*")),
)
"""Name, FFmpeg's name, and whether the first bytes fit; the first that fits counts."""


def _unknown(head: bytes) -> str:
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n")
    if text and all(32 <= byte < 127 or byte in b"\t\r\n" for byte in text[:64]):
        return (
            "it is not a video but a playlist or a text file, and no reference is followed; give the video file itself"
        )
    return "it is not a video, or in a container that is not read (docs/reference/limits.md lists them)"


def _tags(file: BinaryIO) -> int:
    """Bytes of the ID3 tags in front (ID3v2: a header of 10 bytes, 7 bits in each byte of its size)."""
    offset = 0
    while True:
        file.seek(offset)
        head = file.read(10)
        if len(head) < 10 or head[:3] != b"ID3" or max(head[6:10]) > 127:
            return offset
        size = sum(byte << 7 * (3 - place) for place, byte in enumerate(head[6:10]))
        offset += 10 + size + (10 if head[5] & 0x10 else 0)


def _check_boxes(file: BinaryIO, offset: int, file_size: int, name: str) -> None:
    """Compare the top-level boxes of an mp4 file (ISO/IEC 14496-12) with its size.

    Decoders open a file that was cut off in the middle. After the index, bytes that form no box are ignored as rubbish
    at the end. Raises VideoError for a box beyond the file's end, and for a file without an index.
    """
    position, indexed = offset, False
    while position + 8 <= file_size:
        file.seek(position)
        size, kind = struct.unpack(">I4s", file.read(8))
        header = 8
        if size == 1:
            wide = file.read(8)
            size, header = (struct.unpack(">Q", wide)[0] if len(wide) == 8 else 1 << 63), 16
        elif size == 0:
            size = file_size - position
        label = kind.decode("ascii", "replace")
        if indexed and kind not in _TOP_LEVEL_BOXES and (size < header or position + size > file_size):
            return
        if position + size > file_size:
            raise VideoError(
                name, f"the file was cut off: its {label!r} box ends at byte {position + size}, the file at {file_size}"
            )
        if size < header:
            raise VideoError(name, f"the mp4 file is damaged: a {label!r} box of {size} bytes at byte {position}")
        indexed = indexed or kind == b"moov"
        position += size
    if not indexed:
        raise VideoError(name, "the mp4 file has no index (moov box): it was cut off, or never finished")


def _riff_size(head: bytes) -> int:
    """Length of a RIFF file in bytes by its header (of its first part beyond 1 GiB); 0 if unknown or another file."""
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
