"""Ways to damage a file, chosen by a seed."""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator

CONTAINERS = frozenset(b"moov trak mdia minf stbl edts udta dinf".split())


def boxes(data: bytes, start: int = 0, end: int | None = None) -> Iterator[tuple[int, int, bytes]]:
    """Start, end and kind of every box of an mp4 file, those within others too."""
    end = len(data) if end is None else end
    while start + 8 <= end:
        size, kind = struct.unpack_from(">I4s", data, start)
        if size < 8 or start + size > end:
            return
        yield start, start + size, kind
        if kind in CONTAINERS:
            yield from boxes(data, start + 8, start + size)
        start += size


def mutate(data: bytes, seed: int) -> tuple[bytes, str]:
    """A damaged copy, and what was done to it. The same seed damages the same file in the same way."""
    choose = random.Random(seed)
    damaged = bytearray(data)
    kind = KINDS[seed % len(KINDS)]
    for _ in range(choose.choice([1, 1, 2, 5])):
        kind(damaged, choose)
    return bytes(damaged), kind.__name__


def flip_bits(data: bytearray, choose: random.Random) -> None:
    for _ in range(choose.choice([1, 4, 30])):
        data[choose.randrange(len(data))] ^= 1 << choose.randrange(8)


def flip_bits_of_the_index(data: bytearray, choose: random.Random) -> None:
    start, end = _a_box(data, choose, b"moov")
    for _ in range(choose.choice([1, 2, 5])):
        data[choose.randrange(start, end)] ^= 1 << choose.randrange(8)


def truncate(data: bytearray, choose: random.Random) -> None:
    del data[choose.randrange(1, len(data)) :]


def cut_out(data: bytearray, choose: random.Random) -> None:
    at = choose.randrange(len(data))
    del data[at : at + choose.choice([1, 7, 500, 5000])]


def put_in(data: bytearray, choose: random.Random) -> None:
    at = choose.randrange(len(data))
    data[at:at] = choose.randbytes(choose.choice([1, 7, 500]))


def zero(data: bytearray, choose: random.Random) -> None:
    at = choose.randrange(len(data))
    size = min(choose.choice([16, 400, 4000]), len(data) - at)
    data[at : at + size] = bytes(size)


def swap(data: bytearray, choose: random.Random) -> None:
    size = choose.choice([16, 256, 2048])
    if len(data) > 2 * size:
        a, b = sorted(choose.sample(range(0, len(data) - size, size), 2))
        data[a : a + size], data[b : b + size] = data[b : b + size], data[a : a + size]


def repeat(data: bytearray, choose: random.Random) -> None:
    at = choose.randrange(len(data))
    data[at:at] = data[at : at + choose.choice([8, 512, 4096])]


def change_a_size(data: bytearray, choose: random.Random) -> None:
    start, end = _a_box(data, choose)
    size = choose.choice([0, 1, 7, 8, end - start + 1, end - start - 1, 2 * (end - start), 2**31, 2**32 - 1])
    struct.pack_into(">I", data, start, size)


def change_a_number(data: bytearray, choose: random.Random) -> None:
    """One of the index's: counts, offsets, times, sides."""
    start, end = _a_box(data, choose, b"moov")
    at = choose.randrange(start + 8, max(start + 9, end - 4))
    struct.pack_into(">I", data, min(at, len(data) - 4), choose.choice([0, 1, 2**16, 2**31 - 1, 2**31, 2**32 - 1]))


def lose_a_box(data: bytearray, choose: random.Random) -> None:
    start, end = _a_box(data, choose)
    del data[start:end]


def repeat_a_box(data: bytearray, choose: random.Random) -> None:
    start, end = _a_box(data, choose)
    data[end:end] = data[start:end]


def rename_a_box(data: bytearray, choose: random.Random) -> None:
    start, _ = _a_box(data, choose)
    data[start + 4 : start + 8] = choose.choice([b"free", b"moov", b"mdat", b"stco", b"\0\0\0\0"])


def _a_box(data: bytearray, choose: random.Random, within: bytes = b"") -> tuple[int, int]:
    """Where some box lies; of what is left of the file."""
    found = list(boxes(bytes(data)))
    if within:
        outer = [(start, end) for start, end, kind in found if kind == within]
        found = [box for box in found if any(start <= box[0] and box[1] <= end for start, end in outer)]
    if not found:
        return 0, min(8, len(data))
    start, end, _ = choose.choice(found)
    return start, end


KINDS = (
    flip_bits,
    flip_bits_of_the_index,
    truncate,
    cut_out,
    put_in,
    zero,
    swap,
    repeat,
    change_a_size,
    change_a_number,
    lose_a_box,
    repeat_a_box,
    rename_a_box,
)
