"""Damaged mp4 files, read as an engine reads them: what became of each."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

import anyio
import av
import numpy as np

from pvlm.errors import OptionError, VideoError
from pvlm.video import Video, read_video
from pvlm_protocols.backend import FrameDefaults
from tests.video.mutations import mutate
from tests.video.video_files import make_video, pattern

TIMEOUT_S = 30.0
FRAMES = 7


@dataclass
class Outcomes:
    """``counts`` by what came of it: ``error``, ``same`` frames as from the whole file, or ``other`` frames.
    ``kinds``: the same by kind of damage; ``wrong``: what must not be, with seed and source.
    """

    counts: Counter[str] = field(default_factory=Counter)
    kinds: dict[str, Counter[str]] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)


def make_sources(folder: Path) -> dict[str, bytes]:
    """The bundled clips, and small files of several codecs and layouts."""
    made = {
        "h264": make_video(folder / "h264.mp4"),
        "faststart": make_video(folder / "faststart.mp4", container={"movflags": "faststart"}),
        "mpeg4": make_video(folder / "mpeg4.mp4", codec="mpeg4"),
        "fragments": make_video(
            folder / "fragments.mp4", codec="mpeg4", container={"movflags": "frag_keyframe+empty_moov"}
        ),
        "sound": make_with_sound(folder / "sound.mp4"),
    }
    clips = Path(str(files("pvlm") / "bundled" / "clips"))
    return {name: path.read_bytes() for name, path in made.items()} | {
        path.stem: path.read_bytes() for path in sorted(clips.glob("*.mp4"))
    }


def make_with_sound(path: Path) -> Path:
    """H.264 and AAC, interleaved."""
    with av.open(str(path), "w") as out:
        video: Any = out.add_stream("libx264", rate=24)
        video.width, video.height, video.pix_fmt = 160, 96, "yuv420p"
        sound: Any = out.add_stream("aac", rate=16000)
        for index in range(48):
            out.mux(video.encode(av.VideoFrame.from_ndarray(pattern(index, 96, 160), format="rgb24")))
            block = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            block.sample_rate, block.pts = 16000, index * 1024
            out.mux(sound.encode(block))
        out.mux(video.encode())
        out.mux(sound.encode())
    return path


async def read(data: bytes) -> Video:
    return await read_video(
        data,
        num_frames=FRAMES,
        fps=None,
        start=None,
        end=None,
        defaults=FrameDefaults(),
        timeout_s=TIMEOUT_S,
    )


async def read_damaged(sources: dict[str, bytes], seeds: range) -> Outcomes:
    """Damage a source for every seed, and read it, two at a time."""
    outcomes = Outcomes()
    whole = {name: await read(data) for name, data in sources.items()}
    limit = anyio.CapacityLimiter(2)

    async def one(seed: int) -> None:
        name = list(sources)[seed % len(sources)]
        data, kind = mutate(sources[name], seed)
        async with limit:
            outcome, wrong = await outcome_of(data, whole[name])
        outcomes.counts[outcome] += 1
        outcomes.kinds.setdefault(kind, Counter())[outcome] += 1
        if wrong:
            outcomes.wrong.append(f"seed {seed} ({kind} in {name}): {wrong}")

    async with anyio.create_task_group() as tasks:
        for seed in seeds:
            tasks.start_soon(one, seed)
    return outcomes


async def outcome_of(data: bytes, whole: Video) -> tuple[str, str]:
    """What came of it, and what is wrong with that (``""``: nothing)."""
    try:
        with anyio.fail_after(TIMEOUT_S + 15):
            video = await read(data)
    except (VideoError, OptionError) as error:
        reason = getattr(error, "reason", str(error))
        return (
            "error",
            "it hung" if "took longer than" in reason else "" if reason.strip() else "an error without a reason",
        )
    except TimeoutError:
        return "error", "nobody ended it"
    except Exception as error:
        return "error", f"{type(error).__name__}: {error}"
    return ("same" if is_same(video, whole) else "other"), implausible(video, whole)


def is_same(video: Video, whole: Video) -> bool:
    return video.indices == whole.indices and np.array_equal(video.frames, whole.frames)


def implausible(video: Video, whole: Video) -> str:
    """What of a decoded video cannot be, or ``""``."""
    frames, indices, times = video.frames, video.indices, video.timestamps_s
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3 or 0 in frames.shape:
        return f"frames of {frames.dtype} {frames.shape}"
    if not 1 <= len(frames) <= FRAMES or len(indices) != len(frames) or len(times) not in (0, len(frames)):
        return f"{len(frames)} frames, {len(indices)} indices, {len(times)} times"
    if list(indices) != sorted(set(indices)) or not 0 <= indices[0] <= indices[-1] < video.source_frames:
        return f"indices {indices} of {video.source_frames} frames"
    if list(times) != sorted(times) or not np.all(np.isfinite(times)):
        return f"times {times}"
    if video.source_frames > whole.source_frames * 5:
        return f"{video.source_frames} frames, where the whole file has {whole.source_frames}"
    return ""
