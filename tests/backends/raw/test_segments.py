"""Rows of one session in several caches, and prompts in several pieces."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from pvlm_backends.raw import decoder as decoder_module
from pvlm_backends.raw.backend import TorchBackend
from pvlm_backends.raw.cache import KeyValueCache, Part, Rows
from pvlm_backends.raw.session import TorchSession
from pvlm_protocols.backend import Backend, EarlyStates, Prompt
from pvlm_protocols.prefixes import KeptPrefix
from tests.backends.families.llava_onevision.checkpoint import IMAGE_SIZE
from tests.support.checkpoints import random_frames
from tests.support.native import NATIVE, NOT_NATIVE

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


@torch.inference_mode()
def poison(cache: KeyValueCache) -> None:
    for buffer in cache._buffers:
        buffer.fill_(torch.nan)


@pytest.mark.parametrize(
    "name", ["torch", pytest.param("native", marks=pytest.mark.skipif(not NATIVE, reason=NOT_NATIVE))]
)
def test_no_session_sees_rows_that_are_not_its_own(
    load_backend: Callable[[str, str], Backend], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unused rows are poisoned: those that nobody has written, and those of a session that was closed."""
    backend, side = load_backend(name, "target"), 112
    assert isinstance(backend, TorchBackend)
    frames = random_frames(3, side, side)
    asked = [Prompt(question, frames, digest=b"v") for question in ("What is it?", "Why?", "Where does it go then?")]

    def answers() -> list[torch.Tensor]:
        kept: dict[bytes, KeptPrefix] = {}
        first = backend.open_on(asked[0], 8, kept.get, lambda: None)
        found = [first.prefill().clone()]
        kept.update((prefix.key, prefix) for prefix in first.prefixes())
        found.append(first.extend(TOKENS).clone())
        own = first._segments[-1].cache
        first.close()
        poison(own)
        sessions = [backend.open_on(prompt, 8, kept.get, lambda: None) for prompt in asked]
        assert all(session.cached_tokens for session in sessions)
        found += [session.prefill().clone() for session in sessions]
        sessions[0].extend([5, 6])
        sessions[0].truncate(1)
        parts: list[tuple[Any, Sequence[int]]] = [(session, TOKENS[:2]) for session in sessions]
        found += [logits.clone() for logits in backend.extend_together(parts)]
        return found

    expected = answers()
    original = KeyValueCache.__init__

    def poisoned(self: KeyValueCache, *arguments: Any) -> None:
        original(self, *arguments)
        poison(self)

    monkeypatch.setattr(KeyValueCache, "__init__", poisoned)
    for found, right in zip(answers(), expected, strict=True):
        assert torch.equal(found, right)


def test_sessions_share_rows_without_copies(load_backend: Callable[[str, str], Backend]) -> None:
    backend = load_backend("torch", "target")
    assert isinstance(backend, TorchBackend)
    prompt = Prompt("What is it?", random_frames(3, 112, 112), digest=b"v")
    kept: dict[bytes, KeptPrefix] = {}
    sessions: list[TorchSession] = []
    for _ in range(3):
        sessions.append(backend.open_on(prompt, 8, kept.get, lambda: None))
        sessions[-1].prefill()
        kept.update((prefix.key, prefix) for prefix in sessions[-1].prefixes())
    (prefix,) = kept.values()
    assert {id(session._segments[0].cache) for session in sessions} == {id(prefix.content.cache)}  # type: ignore[attr-defined]
    assert len({id(session._segments[1].cache) for session in sessions}) == 3
    rows = prefix.content.cache._buffers[0].shape[-2]  # type: ignore[attr-defined]
    assert rows == prefix.tokens == sessions[2].cached_tokens
