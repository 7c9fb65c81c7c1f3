"""Rows of one session in several caches, as where sessions share the beginning of a prompt."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from pvlm_backends.raw.backend import TorchBackend
from pvlm_backends.raw.cache import KeyValueCache, Part, Rows
from pvlm_protocols.backend import Backend

ROWS, TOKENS = 21, [11, 7, 29, 3]


@pytest.mark.parametrize("cuts", [[13], [0, 8], [4, 4], [ROWS]])
@pytest.mark.parametrize("checkpoint", ["target", "ungrouped"])
@torch.inference_mode()
def test_rows_in_segments_give_the_same_logits(
    load_backend: Callable[[str, str], Backend], checkpoint: str, cuts: list[int]
) -> None:
    backend = load_backend("torch", checkpoint)
    assert isinstance(backend, TorchBackend)
    decoder = backend._decoder
    assert decoder is not None

    def cache() -> KeyValueCache:
        return KeyValueCache(decoder.config, ROWS + len(TOKENS), decoder.dtype, decoder.layer_devices)

    whole, rotations = cache(), decoder.rotations(torch.arange(ROWS + len(TOKENS))[None])
    decoder.extend(torch.arange(ROWS) + 100, rotations[:ROWS], [Part((Rows(whole, 0),), ROWS)])
    pieces = []
    for first, last in zip([0, *cuts], [*cuts, ROWS], strict=True):
        piece = cache()
        for ours, theirs in zip(piece._buffers, whole._buffers, strict=True):
            ours[..., : last - first, :] = theirs[..., first:last, :]
        pieces.append(Rows(piece, last - first))
    ids, turned = torch.tensor(TOKENS), rotations[ROWS:]
    expected = decoder.extend(ids, turned, [Part((Rows(whole, ROWS),), len(TOKENS))])
    found = decoder.extend(ids, turned, [Part(tuple(pieces), len(TOKENS))])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
