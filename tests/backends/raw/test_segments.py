"""Rows of one session in several caches, and prompts in several pieces."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from pvlm_backends.raw import decoder as decoder_module
from pvlm_backends.raw.backend import TorchBackend
from pvlm_backends.raw.cache import KeyValueCache, Part, Rows
from pvlm_protocols.backend import Backend, EarlyStates, Prompt
from tests.backends.families.llava_onevision.checkpoint import IMAGE_SIZE
from tests.support.checkpoints import random_frames

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


@pytest.mark.parametrize("piece", [1, 5, 16, 1000])
@pytest.mark.parametrize("checkpoint", ["target", "ungrouped"])
def test_a_prompt_in_pieces_gives_the_same_logits(
    load_backend: Callable[[str, str], Backend], checkpoint: str, piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend, side = load_backend("torch", checkpoint), 112 if checkpoint == "target" else IMAGE_SIZE
    prompt = Prompt("What happens first in the video?", random_frames(3, side, side))
    expected, found = backend.open(prompt, 4), backend.open(prompt, 4)
    logits = expected.prefill()
    monkeypatch.setitem(decoder_module.PIECES, "cpu", piece)
    states: list[EarlyStates] = []
    torch.testing.assert_close(found.prefill(early_layer=1, on_early_layer=states.append), logits, rtol=1e-4, atol=1e-4)
    assert len(states) == 1
    torch.testing.assert_close(found.extend(TOKENS), expected.extend(TOKENS), rtol=1e-4, atol=1e-4)
