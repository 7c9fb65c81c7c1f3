"""The configuration of a model, and how its decoder's keys are read from config.json.

The keys are those of transformers 4 and 5.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from pvlm_protocols.backend import CheckpointError

_Vision = TypeVar("_Vision")


@dataclass(frozen=True)
class DecoderConfig:
    """The dimensions of a decoder of the Qwen2 kind."""

    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab_size: int
    max_positions: int
    rms_norm_eps: float
    rope_theta: float
    rope_axes: tuple[int, ...]
    """For each of the ``head_dim / 2`` rotary frequencies, the axis of a position that turns it."""
    tied_head: bool
    qkv_bias: bool = True
    """The projections of queries, keys and values have biases."""
    qk_norm: bool = False
    """The heads of queries and keys are normalised before they are rotated."""


@dataclass(frozen=True)
class ModelConfig(Generic[_Vision]):
    """A decoder, and the family's own description of its vision tower."""

    decoder: DecoderConfig
    vision: _Vision
    dtype: str
    """The checkpoint's own: ``float32``, ``bfloat16`` or ``float16``."""


def read_rotary(folder: Path, text: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the rotary settings, under their new key or their old one; empty if there are none.

    Raises:
        CheckpointError: the text's settings ask for attention or an activation that the decoder does not support.
    """
    rope: Mapping[str, Any] = text.get("rope_parameters") or text.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    require(folder, "rope_type", "default" if kind == "mrope" else kind, "default")
    require(folder, "text_config.hidden_act", text.get("hidden_act", "silu"), "silu")
    sliding = text.get("use_sliding_window", False) or "sliding_attention" in (text.get("layer_types") or ())
    require(folder, "text_config.use_sliding_window", sliding, False)
    return rope


def read_sections(folder: Path, rope: Mapping[str, Any], usual: Sequence[int], frequencies: int) -> tuple[int, ...]:
    """Return how many of a head's ``frequencies`` time, height and width take each.

    ``usual``: the family's own numbers, for checkpoints that leave them out. Raises CheckpointError for other numbers
    than three, or another sum.
    """
    sections = tuple(rope.get("mrope_section", usual))
    if len(sections) != 3 or sum(sections) != frequencies:
        raise CheckpointError(
            f"{folder}/config.json: mrope_section is {list(sections)}; it must be three numbers that add up to half of "
            f"a head, {frequencies}"
        )
    return sections


def read_decoder(
    settings: Mapping[str, Any],
    text: Mapping[str, Any],
    rope: Mapping[str, Any],
    head_dim: int,
    rope_axes: tuple[int, ...],
    *,
    qkv_bias: bool = True,
    qk_norm: bool = False,
) -> DecoderConfig:
    """Read the decoder's dimensions.

    Args:
        settings: config.json.
        text: its part about the decoder, with the family's defaults for absent keys.
        rope: from `read_rotary`.
        head_dim: width of a head.
        rope_axes, qkv_bias, qk_norm: see `DecoderConfig`.
    """
    heads = text["num_attention_heads"]
    return DecoderConfig(
        hidden_size=text["hidden_size"],
        intermediate_size=text["intermediate_size"],
        layers=text["num_hidden_layers"],
        heads=heads,
        kv_heads=text["num_key_value_heads"] or heads,
        head_dim=head_dim,
        vocab_size=text["vocab_size"],
        max_positions=text["max_position_embeddings"],
        rms_norm_eps=text["rms_norm_eps"],
        rope_theta=rope.get("rope_theta") or text["rope_theta"],
        rope_axes=rope_axes,
        tied_head=bool(settings.get("tie_word_embeddings", False) or text.get("tie_word_embeddings", False)),
        qkv_bias=qkv_bias,
        qk_norm=qk_norm,
    )


def stored_dtype(settings: Mapping[str, Any]) -> str:
    """Return the dtype that config.json, or its text part, names; ``float32`` if neither does."""
    text = settings.get("text_config") or {}
    named = (place.get(key) for place in (settings, text) for key in ("dtype", "torch_dtype"))
    return next(filter(None, named), "float32")


def require(folder: Path, key: str, found: object, supported: object) -> None:
    """Raise CheckpointError, with the key's name, unless its value is the supported one."""
    if found != supported:
        raise CheckpointError(f"{folder}/config.json: {key} is {found!r}; this backend supports only {supported!r}")
