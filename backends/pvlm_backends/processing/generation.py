"""A checkpoint's settings for generation: its end tokens and its logits processors."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pvlm_protocols.backend import CheckpointError

from .files import read_optional_settings

# Options of transformers' GenerationConfig that change which token is chosen, each with the values that disable it.
# Temperature, top-k, top-p and min-p are left out: the caller sets them.
_NEUTRAL_VALUES: dict[str, tuple[Any, ...]] = {
    "bad_words_ids": (None, []),
    "begin_suppress_tokens": (None, []),
    "diversity_penalty": (None, 0.0),
    "encoder_no_repeat_ngram_size": (None, 0),
    "encoder_repetition_penalty": (None, 1.0),
    "epsilon_cutoff": (None, 0.0),
    "eta_cutoff": (None, 0.0),
    "exponential_decay_length_penalty": (None,),
    "forced_bos_token_id": (None,),
    "forced_eos_token_id": (None,),
    "guidance_scale": (None, 1.0),
    "min_length": (None, 0),
    "min_new_tokens": (None, 0),
    "no_repeat_ngram_size": (None, 0),
    "num_beams": (None, 1),
    "penalty_alpha": (None, 0.0),
    "repetition_penalty": (None, 1.0),
    "sequence_bias": (None, {}, []),
    "suppress_tokens": (None, []),
    "typical_p": (None, 1.0),
    "watermarking_config": (None,),
}


def end_token_ids(folder: Path, config: Mapping[str, Any]) -> tuple[int, ...]:
    """Return the ids that end an answer: from generation_config.json, else from config.json or its text part.

    Args:
        folder: the checkpoint's folder.
        config: its config.json.

    Raises:
        CheckpointError: none of the files names an id, or the named value is no id.
    """
    places = (
        read_optional_settings(folder, "generation_config.json") or {},
        config,
        config.get("text_config") or {},
    )
    for place in places:
        named = place.get("eos_token_id")
        if named is None:
            continue
        ids = named if isinstance(named, list) else [named]
        if not ids or not all(type(token) is int and token >= 0 for token in ids):
            raise CheckpointError(f"{folder}: eos_token_id is {named!r}, not a token id or a list of them")
        return tuple(dict.fromkeys(ids))
    raise CheckpointError(f"{folder} names no eos_token_id, neither in generation_config.json nor in config.json")


def ignored_generation_options(folder: Path) -> tuple[str, ...]:
    """Return the logits processors of generation_config.json as ``name=value``, sorted by name."""
    asked = read_optional_settings(folder, "generation_config.json") or {}
    return tuple(
        f"{name}={asked[name]!r}"
        for name, neutral in _NEUTRAL_VALUES.items()
        if name in asked and asked[name] not in neutral
    )
