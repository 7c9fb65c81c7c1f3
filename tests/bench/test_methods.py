"""The methods that are compared, and the clips that they answer about."""

from __future__ import annotations

import numpy as np
import pytest

from pvlm import ConfigError, EngineConfig, OptionError
from pvlm.bench.methods import CONTENDERS, METHODS, OpenContenders, contenders, read_clip
from tests.bench.conftest import CLIPS
from tests.support.pair import PAIR


def test_contenders_come_in_their_order_with_plain_decoding() -> None:
    assert [contender.name for contender in contenders(METHODS)] == list(CONTENDERS)
    assert [contender.name for contender in contenders(["sd"])] == ["ar", "sd"]
    pruned = ["pruned-none", "pruned-uv-10", "pruned-uv-50"]
    assert [contender.name for contender in contenders(["pruned-uv"])] == ["ar", *pruned]
    with pytest.raises(OptionError, match="unknown method 'sdd': use some of ar, "):
        contenders(["sdd"])


def test_transformers_is_asked_for_only_where_it_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pvlm.bench.peers.find_spec", lambda name: None)
    assert len(contenders(["parallel"])) == 2
    for name in ("generate", "assisted", "prompt-lookup"):
        with pytest.raises(OptionError, match=r"pip install 'pvlm\[hf\]'"):
            contenders([name])


@pytest.mark.anyio
async def test_a_missing_draft_is_reported_before_anything_is_loaded() -> None:
    with pytest.raises(ConfigError, match="'sd' needs a draft"):
        async with OpenContenders(EngineConfig(draft=None), contenders(["sd"]), 8):
            pass


@pytest.mark.anyio
async def test_repeated_frames_are_in_order() -> None:
    six = await read_clip(EngineConfig(**PAIR), CLIPS / "one-scene.mp4", "?")
    twelve = await read_clip(EngineConfig(**PAIR), CLIPS / "one-scene.mp4", "?", 12, repeat=True)
    assert len(six.frames) == 6
    assert np.array_equal(twelve.frames, np.repeat(six.frames, 2, axis=0))
    assert twelve.timestamps_s == tuple(np.repeat(six.timestamps_s, 2))
