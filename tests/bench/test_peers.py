"""transformers' own decoding loops, and their process."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import anyio
import pytest

from pvlm import EngineConfig, ModelError
from pvlm.bench.methods import read_clip
from pvlm.bench.peers import PeerModels, PeerProcess
from pvlm_backends.hf import HuggingFaceBackend
from pvlm_protocols.backend import LoadOptions, Prompt
from tests.bench.conftest import CLIPS
from tests.support.pair import PAIR


@pytest.mark.anyio
async def test_the_assistant_sees_the_video() -> None:
    """It accepts what the same draft accepts in pvlm; blind, as transformers leaves it, it would have 0.5."""
    clip = await read_clip(EngineConfig(**PAIR), CLIPS / "two-scenes.mp4", "Describe the video.")
    target, draft = (HuggingFaceBackend.load(LoadOptions(PAIR[role])) for role in ("target", "draft"))
    prompt = Prompt(clip.question, clip.frames)
    alone = target.generate(prompt, 120)
    assisted = target.generate(prompt, 120, assistant=draft)
    looked_up = target.generate(prompt, 120, lookup_tokens=10)
    assert assisted.tokens == looked_up.tokens == alone.tokens
    assert alone.target_passes == len(alone.tokens)
    assert alone.windows == ()
    assert assisted.target_passes < len(alone.tokens) / 4
    assert assisted.accepted_tokens / (assisted.accepted_tokens + assisted.rejected_tokens) > 0.85
    assert looked_up.target_passes < len(alone.tokens)
    assert assisted.prefill_s < assisted.first_token_s
    assert draft.generate(prompt, 4).tokens  # it has been left as it was


@pytest.mark.anyio
async def test_a_peer_that_cannot_load_says_why(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="nothing-here"):
        async with PeerProcess(PeerModels(str(tmp_path / "nothing-here"), None), [0]):
            pass


@pytest.mark.anyio
async def test_a_peer_that_dies_is_an_error() -> None:
    async with PeerProcess(PeerModels(PAIR["draft"], None), sorted(os.sched_getaffinity(0))[:1]) as peer:
        assert len(os.sched_getaffinity(peer.process)) == 1
        os.kill(peer.process, signal.SIGKILL)
        with pytest.raises(ModelError, match="has ended"), anyio.fail_after(30):
            await peer.answer("generate", Prompt("?"), 2)
