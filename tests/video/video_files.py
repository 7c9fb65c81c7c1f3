"""Making small videos whose frames say which they are."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

BITS = 10


def pattern(index: int, height: int, width: int) -> np.ndarray:
    """uint8 (H, W, 3): vertical bars, one for each bit of the index, with some texture in the upper quarter."""
    frame = np.zeros((height, width, 3), np.uint8)
    for bit in range(BITS):
        frame[:, bit * width // BITS : (bit + 1) * width // BITS] = 235 if index >> bit & 1 else 16
    noise = np.random.default_rng(index).integers(0, 255, (height // 16, width // 4, 3), dtype=np.uint8)
    frame[: height // 16 * 4] = np.kron(noise, np.ones((4, 4, 1), np.uint8))[:, :width] if width % 4 == 0 else 128
    return frame


def index_of(frame: np.ndarray) -> int:
    """Which `pattern` a decoded frame shows."""
    height, width = frame.shape[:2]
    rows = frame[height // 2 : height - 4]
    bars = (rows[:, bit * width // BITS + 2 : (bit + 1) * width // BITS - 2] for bit in range(BITS))
    return sum(1 << bit for bit, bar in enumerate(bars) if bar.mean() > 128)


def indices_of(frames: np.ndarray) -> list[int]:
    return [index_of(frame) for frame in frames]


@contextmanager
def _scheduled_as_before() -> Iterator[None]:
    """SVT-AV1 gives its caller real-time priority, if it may. This thread, and the processes that later tests start
    from it, would keep that and take the cores from others.
    """
    policy, parameters = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        yield
    finally:
        os.sched_setscheduler(0, policy, parameters)


def make_video(
    path: Path,
    *,
    frames: int = 60,
    size: tuple[int, int] = (96, 160),
    codec: str = "libx264",
    options: dict[str, str] | None = None,
    container: dict[str, str] | None = None,
    times_ms: list[int] | None = None,
    rate: int = 24,
    pixels: str = "yuv420p",
    picture: Callable[[int], np.ndarray] | None = None,
) -> Path:
    """An encoded video of patterns 0, 1, 2, ...; groups of 12 frames with up to two B-frames."""
    height, width = size
    with _scheduled_as_before(), av.open(str(path), "w", options=container or {}) as out:
        stream: Any = out.add_stream(codec, rate=rate)
        stream.width, stream.height, stream.pix_fmt = width, height, pixels
        stream.codec_context.gop_size = 12
        if codec == "libx264":
            stream.options = {"g": "12", "bf": "2", "preset": "veryfast", "sc_threshold": "0", **(options or {})}
        if codec.startswith("libvpx"):
            stream.options = {"deadline": "realtime", "cpu-used": "8"}
        if codec == "libx265":
            stream.options = {"preset": "ultrafast", "x265-params": "log-level=none:keyint=12:bframes=3"}
        if times_ms is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        for index in range(frames):
            shown = pattern(index, height, width) if picture is None else picture(index)
            frame = av.VideoFrame.from_ndarray(shown, format="rgb24")
            if times_ms is not None:
                frame.pts, frame.time_base = times_ms[index], Fraction(1, 1000)
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    return path


def copy_video(
    source: Path,
    target: Path,
    *,
    shift_s: float = 0.0,
    container: dict[str, str] | None = None,
    moved: dict[int, int] | None = None,
) -> Path:
    """Copy without encoding. A negative shift hides the frames before 0, as cutting with ``-c copy`` does. ``moved``:
    packets that get the time of another one, both by number.
    """
    times: list[int] = []
    with av.open(str(source)) as given, av.open(str(target), "w", options=container or {}) as out:
        stream = given.streams.video[0]
        copied = out.add_stream_from_template(stream)
        for packet in given.demux(stream):
            if packet.dts is None or packet.pts is None:
                continue
            ticks = round(shift_s / stream.time_base)
            packet.pts, packet.dts, packet.stream = packet.pts + ticks, packet.dts + ticks, copied
            times.append(packet.pts)
            if moved and len(times) - 1 in moved:
                packet.pts = packet.dts = times[moved[len(times) - 1]]
            out.mux(packet)
    return target


def make_audio(path: Path) -> Path:
    with av.open(str(path), "w") as out:
        stream: Any = out.add_stream("aac", rate=16000)
        for block in range(20):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            frame.sample_rate, frame.pts = 16000, block * 1024
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    return path


def box(data: bytes, kind: bytes) -> tuple[int, int]:
    """Start and end of the payload of the first box of a kind."""
    at = data.index(kind) - 4
    return at + 8, at + int.from_bytes(data[at : at + 4], "big")
