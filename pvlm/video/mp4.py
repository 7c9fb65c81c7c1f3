"""The index of an MP4 or MOV file (ISO/IEC 14496-12), read without a decoder.

Decoders open a file that was cut off in the middle, and repeat its first frames. The index gives the length of the
whole file, and the places where random access is exact.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np

from pvlm.errors import VideoError
from pvlm.video.selection import SAME_TIME_S

TOP_LEVEL_BOXES = frozenset(b"ftyp moov mdat free skip wide moof mfra styp sidx pnot uuid".split())
_MAX_INDEX_BYTES = 1 << 29
_MAX_SAMPLES = 50_000_000


@dataclass(frozen=True)
class Mp4Index:
    """The only video track of an MP4 file, by its index.

    ``samples``: number of encoded frames. ``exact_seeking``: decoding may start at any random access point, and
    counting from there gives the right frames. It needs four things. Each random access point is also a border in
    presentation order (a *closed* group of pictures), and an IDR picture in H.264 and H.265. The first frame is one.
    No two frames share a time. No edit list hides frames.
    """

    samples: int
    exact_seeking: bool
    hides_frames: bool
    """Whether an edit list hides some of the frames."""
    shown_s: float | None
    """Seconds that the edit list shows; None without a limit."""


def read_index(file: BinaryIO, file_size: int, name: str) -> Mp4Index | None:
    """Check the boxes of a file against its size, and read its index. Returns None for a fragmented file, and for any
    other number of video tracks than one.

    Raises VideoError (for ``name``) if the file was cut off, its index is damaged, or it has no video frames.
    """
    boxes = list(_top_level_boxes(file, file_size, name))
    moov = next(((start, size) for kind, start, size in boxes if kind == b"moov"), None)
    if moov is None:
        raise VideoError(name, "the mp4 file has no index (moov box): it was cut off, or never finished")
    if moov[1] > _MAX_INDEX_BYTES:
        raise VideoError(name, f"the mp4 file's index claims {moov[1]} bytes: it is damaged")
    file.seek(moov[0])
    index = file.read(moov[1])
    try:
        movie_scale = _scale(dict(_boxes(index))[b"mvhd"])
        found = (_video_track(box, movie_scale, file_size) for kind, box in _boxes(index) if kind == b"trak")
        tracks = [track for track in found if track is not None]
        if any(kind == b"moof" for kind, _, _ in boxes):
            return None  # a fragmented file lists its frames elsewhere
        if not tracks:
            raise VideoError(name, "there is no video stream in it")
        if all(len(track.sizes) == 0 for track in tracks):
            raise VideoError(name, "it has no frames")
        needed = max(int((track.offsets + track.sizes).max()) for track in tracks if len(track.sizes))
        if needed > file_size:
            raise VideoError(name, f"the file was cut off: its frames need {needed} bytes, there are {file_size}")
        if len(tracks) > 1:
            return None
        track = tracks[0]
        exact = track.closed_groups and not track.edits.hide_frames and _all_idr(file, track)
        return Mp4Index(len(track.sizes), exact, track.edits.hide_frames, track.edits.shown_s)
    except KeyError as error:
        raise VideoError(name, f"the mp4 file's index is damaged: it has no {error.args[0].decode()!r} box") from error
    except (struct.error, IndexError, ValueError) as error:
        raise VideoError(name, f"the mp4 file's index is damaged ({error})") from error


def _top_level_boxes(file: BinaryIO, file_size: int, name: str) -> Iterator[tuple[bytes, int, int]]:
    """Kind, start of the payload and its size. Raises VideoError for a box beyond the file's end.

    After the index, bytes that form no box are ignored as rubbish at the end.
    """
    position, indexed = 0, False
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
        if indexed and kind not in TOP_LEVEL_BOXES and (size < header or position + size > file_size):
            return
        if position + size > file_size:
            raise VideoError(
                name, f"the file was cut off: its {label!r} box ends at byte {position + size}, the file at {file_size}"
            )
        if size < header:
            raise VideoError(name, f"the mp4 file is damaged: a {label!r} box of {size} bytes at byte {position}")
        yield kind, position + header, size - header
        indexed = indexed or kind == b"moov"
        position += size


def _boxes(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Kind and payload of the boxes within a box."""
    position = 0
    while position + 8 <= len(data):
        size, kind = struct.unpack_from(">I4s", data, position)
        header = 8
        if size == 1:
            (size,), header = struct.unpack_from(">Q", data, position + 8), 16
        if size == 0:
            size = len(data) - position
        if size < header:
            return
        yield kind, data[position + header : position + size]
        position += size


@dataclass(frozen=True)
class _Edits:
    """Effect of an edit list: whether it hides frames, and the seconds that it shows (None: no limit)."""

    hide_frames: bool = False
    shown_s: float | None = None


@dataclass(frozen=True)
class _Track:
    offsets: np.ndarray
    sizes: np.ndarray
    """Bytes, int64, one for each frame in decoding order."""
    syncs: np.ndarray
    """Numbers of the random access points; ascending."""
    closed_groups: bool
    edits: _Edits
    codec: bytes
    length_bytes: int
    """H.264 and H.265: width of a NAL unit's length in bytes; else 0."""


def _video_track(box: bytes, movie_scale: int, file_size: int) -> _Track | None:
    """A track's sample tables; None for other tracks than video. A frame takes at least a byte of the file."""
    parts = dict(_boxes(box))
    media = dict(_boxes(parts.get(b"mdia", b"")))
    if media.get(b"hdlr", b"")[8:12] != b"vide":
        return None
    table = dict(_boxes(dict(_boxes(media[b"minf"]))[b"stbl"]))
    uniform_size, samples = struct.unpack_from(">II", table[b"stsz"], 4)
    if samples > min(_MAX_SAMPLES, file_size):
        raise ValueError(f"it claims {samples} frames")
    nothing = np.zeros(0, np.int64)
    if samples == 0:
        return _Track(nothing, nothing, nothing, False, _Edits(), b"", 0)
    sizes = np.full(samples, uniform_size) if uniform_size else _words(table[b"stsz"], 12, samples)
    decoded_at = np.cumsum(_runs(table[b"stts"], samples))
    delays = _runs(table[b"ctts"], samples).astype(np.int32) if b"ctts" in table else 0
    shown_at = np.concatenate([[0], decoded_at[:-1]]) + delays
    syncs = np.arange(samples)
    if (listed := table.get(b"stss")) is not None:
        syncs = _words(listed, 8, struct.unpack_from(">I", listed, 4)[0]) - 1
        if np.any(np.diff(syncs) <= 0) or np.any((syncs < 0) | (syncs >= samples)):
            raise ValueError("the list of key frames")
    listed = dict(_boxes(parts.get(b"edts", b""))).get(b"elst")
    edits = _edits(listed, shown_at, movie_scale, _scale(media[b"mdhd"]))
    closed = _closed_groups(syncs, shown_at)
    return _Track(_sample_offsets(table, sizes), sizes, syncs, closed, edits, *_codec(table[b"stsd"]))


def _closed_groups(syncs: np.ndarray, shown_at: np.ndarray) -> bool:
    """Whether frames before a random access point in the file are shown before it, and later frames after it."""
    if len(np.unique(shown_at)) != len(shown_at) or len(syncs) == 0 or syncs[0] != 0:
        return False
    earlier = np.maximum.accumulate(shown_at)
    later = np.minimum.accumulate(shown_at[::-1])[::-1]
    borders = syncs[1:]
    return bool(np.all(later[syncs] == shown_at[syncs]) and np.all(earlier[borders - 1] < shown_at[borders]))


def _edits(box: bytes | None, shown_at: np.ndarray, movie_scale: int, media_scale: int) -> _Edits:
    """Effect of an edit list; a delay, or an offset for reordered frames, hides nothing. Scales: ticks a second."""
    if box is None:
        return _Edits()
    layout, size = (">Qq", 20) if box[0] == 1 else (">Ii", 12)
    (count,) = struct.unpack_from(">I", box, 4)
    entries = [struct.unpack_from(layout, box, 8 + k * size) for k in range(min(count, 64))]
    parts = [(duration, start) for duration, start in entries if start != -1]
    if len(parts) != 1:
        return _Edits(hide_frames=bool(parts))
    (duration, start), first, last = parts[0], int(shown_at.min()), int(shown_at.max())
    shown_s = duration / movie_scale if duration else None
    cut = shown_s is not None and (last - start) / media_scale > shown_s - SAME_TIME_S
    return _Edits(start > first or cut, shown_s)


def _scale(header: bytes) -> int:
    """Ticks a second, of an mvhd or mdhd box."""
    (scale,) = struct.unpack_from(">I", header, 20 if header[0] == 1 else 12)
    if scale == 0:
        raise ValueError("a time scale of 0")
    return int(scale)


def _codec(descriptions: bytes) -> tuple[bytes, int]:
    """Codec of the first sample description, and the width of NAL lengths. A visual entry has 78 bytes of fields."""
    kind, entry = next(_boxes(descriptions[8:]), (b"", b""))
    extensions = dict(_boxes(entry[78:]))
    if b"avcC" in extensions:
        return kind, (extensions[b"avcC"][4] & 3) + 1
    if b"hvcC" in extensions:
        return kind, (extensions[b"hvcC"][21] & 3) + 1
    return kind, 0


def _all_idr(file: BinaryIO, track: _Track) -> bool:
    """Whether the first slice of each random access point is of an IDR picture; True for codecs without NAL units.

    H.264: NAL unit type 5 (types 1 to 5 are slices); H.265: 19 and 20 (0 to 31 are slices).
    """
    if track.codec not in (b"avc1", b"avc2", b"avc3", b"avc4", b"hvc1", b"hev1", b"dvh1", b"dvhe"):
        return True
    advanced = track.codec.startswith(b"avc")
    if track.length_bytes == 0:
        return False
    for sync in track.syncs:
        position, end = int(track.offsets[sync]), int(track.offsets[sync] + track.sizes[sync])
        kind = -1
        while position + track.length_bytes < end:
            file.seek(position)
            header = file.read(track.length_bytes + 1)
            kind = header[-1] & 31 if advanced else header[-1] >> 1 & 63
            if 1 <= kind <= 5 if advanced else kind <= 31:
                break
            position += track.length_bytes + int.from_bytes(header[:-1], "big")
        if kind not in ((5,) if advanced else (19, 20)):
            return False
    return True


def _sample_offsets(table: dict[bytes, bytes], sizes: np.ndarray) -> np.ndarray:
    """Start of each sample in the file, by the chunk tables."""
    wide = b"co64" in table
    chunk_table = table[b"co64" if wide else b"stco"]
    (chunks,) = struct.unpack_from(">I", chunk_table, 4)
    chunk_offsets = _words(chunk_table, 8, chunks, ">u8" if wide else ">u4")
    (groups,) = struct.unpack_from(">I", table[b"stsc"], 4)
    runs = _words(table[b"stsc"], 8, groups * 3).reshape(-1, 3)
    per_chunk = np.minimum(np.repeat(runs[:, 1], np.diff(np.append(runs[:, 0], chunks + 1))), len(sizes))
    if len(per_chunk) != chunks or per_chunk.sum() < len(sizes):
        raise ValueError("the chunks do not hold all frames")
    if per_chunk.sum() > 2 * len(sizes) + _MAX_SAMPLES:
        raise ValueError("the chunks hold more than all frames")
    chunk_of = np.repeat(np.arange(chunks), per_chunk)[: len(sizes)]
    first_of = np.concatenate([[0], np.cumsum(per_chunk)[:-1]])
    before = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    within = before - before[np.minimum(first_of, len(sizes) - 1)][chunk_of]
    return np.asarray(chunk_offsets[chunk_of] + within)


def _runs(box: bytes, samples: int) -> np.ndarray:
    """(count, value) pairs of stts or ctts: one value for each sample, int64."""
    (entries,) = struct.unpack_from(">I", box, 4)
    pairs = _words(box, 8, entries * 2).reshape(-1, 2)
    ends = np.minimum(np.cumsum(pairs[:, 0]), samples)
    values = np.repeat(pairs[:, 1], np.diff(ends, prepend=0))
    if len(values) < samples:
        raise ValueError("there are frames without a time")
    return values


def _words(box: bytes, offset: int, count: int, dtype: str = ">u4") -> np.ndarray:
    """A table of numbers as int64."""
    if offset + count * np.dtype(dtype).itemsize > len(box):
        raise ValueError("a table is longer than its box")
    return np.frombuffer(box, dtype, count, offset).astype(np.int64)
