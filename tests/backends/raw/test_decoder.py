"""Rotary embeddings of positions with several axes."""

from __future__ import annotations

import pytest
import torch

from pvlm_backends.families.config import DecoderConfig
from pvlm_backends.raw.decoder import Decoder
from pvlm_backends.raw.random_weights import RandomWeights

CPU = torch.device("cpu")


@pytest.mark.parametrize("axes", [(0,) * 8, (0, 0, 1, 1, 1, 2, 2, 2), (0, 1, 2, 0, 1, 2, 0, 1)])
def test_each_frequency_turns_with_its_axis(axes: tuple[int, ...]) -> None:
    """One axis, sections one after another, and interleaved sections."""
    config = DecoderConfig(32, 48, 1, 2, 1, 16, 64, 128, 1e-6, 10_000.0, rope_axes=axes, tied_head=True)
    decoder = Decoder(config, RandomWeights(config, torch.float32, CPU), torch.float32, [CPU])
    positions = torch.tensor([[0, 1, 2, 3], [0, 1, 7, 8], [0, 2, 2, 9]])[: max(axes) + 1]
    expected = torch.stack([positions[axis] / 10_000.0 ** (index / 8) for index, axis in enumerate(axes)], dim=1)
    found = decoder.rotations(positions)
    assert found.shape == (4, 1, 8)
    torch.testing.assert_close(found[:, 0], torch.polar(torch.ones_like(expected), expected), rtol=0, atol=1e-5)
