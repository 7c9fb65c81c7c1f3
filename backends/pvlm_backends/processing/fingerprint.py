"""A tokenizer's fingerprint: a hash of what decides which ids a text gets, in a normal form."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from typing import Any

from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel


def fingerprint(tokenizer: Tokenizer) -> str:
    """Hash everything that decides which ids a text without added tokens gets.

    Left out are the decoder; the post-processor, truncation and padding, which are not used here; and the added tokens
    (``<image>``, ``<|video_pad|>``), because each family adds its own to a vocabulary that it shares with others.
    Different spellings of one tokenizer.json give one fingerprint: see `_normal_model` and `_steps`.
    """
    described = json.loads(tokenizer.to_str())
    splitting = _steps(described["pre_tokenizer"])
    decisive = {
        "normalizer": _steps(described["normalizer"]),
        "pre_tokenizer": splitting,
        "model": _normal_model(
            tokenizer,
            described["model"],
            {token["content"] for token in described["added_tokens"]},
            any(step["type"] == "ByteLevel" for step in splitting),
        ),
    }
    return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()


def _steps(part: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """The steps of a normalizer or a pre-tokenizer, nested sequences unfolded, without what changes offsets alone."""
    if part is None:
        return []
    if part["type"] == "Sequence":
        return [step for nested in part.get("normalizers", part.get("pretokenizers")) for step in _steps(nested)]
    return [{key: value for key, value in part.items() if key != "trim_offsets"}]


def _normal_model(
    tokenizer: Tokenizer, model: Mapping[str, Any], added: Collection[str], by_bytes: bool
) -> dict[str, Any]:
    """The model without added tokens, with one value for settings that have the same effect.

    ``by_bytes``: the pre-tokenizer writes texts in the letters that stand for bytes.
    """
    normal = dict(model)
    vocabulary = normal.get("vocab")
    if not isinstance(vocabulary, dict):
        return normal
    normal["vocab"] = vocabulary = {text: index for text, index in vocabulary.items() if text not in added}
    if normal["type"] == "BPE":
        for name in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
            normal[name] = normal[name] or None
        if by_bytes and vocabulary.keys() >= set(ByteLevel.alphabet()):  # no letter is unknown
            normal.update(unk_token=None, fuse_unk=False, byte_fallback=False)
        if normal["ignore_merges"]:
            normal["ignore_merges"] = not _merges_suffice(tokenizer, vocabulary)
    return normal


def _merges_suffice(tokenizer: Tokenizer, vocabulary: Collection[str]) -> bool:
    """Whether the merges make each token out of its letters, so that it does not matter if they are ignored for it."""
    copied = Tokenizer.from_str(tokenizer.to_str()).model
    assert isinstance(copied, BPE)
    copied.ignore_merges = False
    return all(len(copied.tokenize(text)) == 1 for text in vocabulary)
