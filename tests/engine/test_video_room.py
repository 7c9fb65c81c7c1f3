"""The room for videos and the progress of reading, by an engine."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import anyio
import pytest

from pvlm import Engine, OptionError
from tests.engine.conftest import TOY

pytestmark = pytest.mark.anyio

CLIP = Path(str(files("pvlm") / "bundled" / "clips" / "one-scene.mp4"))
BYTES = 6 * 224 * 224 * 3


async def test_answers_share_the_room_for_videos() -> None:
    """Two answers in turn, because there is room for one video; a third needs more than all of it."""
    told: list[tuple[str, float]] = []
    async with Engine.create(
        TOY,
        target="0@1",
        max_video_bytes=BYTES,
        prefix_cache_bytes=0,
        on_progress=lambda *what: told.append(what),
    ) as engine:
        async with anyio.create_task_group() as tasks:
            for _ in range(2):
                tasks.start_soon(lambda: engine.answer(CLIP, "?", max_tokens=3, num_frames=6))
        fractions = [fraction for label, fraction in told if label == "read video"]
        assert len(fractions) == 12
        assert fractions[5] == fractions[11] == 1.0
    async with Engine.create(TOY, target="0@1", max_video_bytes=BYTES - 1) as engine:
        with pytest.raises(
            OptionError, match=r"6 frames of 224x224 need .* \(max_video_bytes\); ask for at most 5 frames"
        ):
            await engine.answer(CLIP, "?", num_frames=6)
        assert (await engine.answer(CLIP, "?", num_frames=5, max_tokens=3)).tokens
