"""transformers' own loops, where they cannot be compared with pvlm."""

from __future__ import annotations

from pathlib import Path

import pytest

from pvlm_backends.hf import HuggingFaceBackend
from pvlm_protocols.backend import BackendError, LoadOptions, Prompt
from tests.backends.families.qwen2_5_vl.checkpoint import TOKEN_SIDE, qwen_checkpoint
from tests.support.checkpoints import random_frames


def test_a_video_with_positions_of_several_axes_is_refused(tmp_path: Path) -> None:
    """`generate` would number its tokens as text, and answer something else."""
    backend = HuggingFaceBackend.load(LoadOptions(str(qwen_checkpoint(tmp_path / "checkpoint"))))
    with pytest.raises(BackendError, match="generate cannot be run here on a video of 'qwen2_5_vl'"):
        backend.generate(Prompt("What happens?", random_frames(2, 2 * TOKEN_SIDE, 2 * TOKEN_SIDE)), 4)
    assert len(backend.generate(Prompt("What happens?"), 4).tokens) <= 4
