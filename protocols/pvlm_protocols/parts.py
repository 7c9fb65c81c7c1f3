"""The parts of messages: numbers with their bounds, and what an answer is opened with.

The bounds of numbers, and the lengths of texts and tuples, are part of the types: what is beyond them does not decode.
"""

from __future__ import annotations

import sys
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from pvlm_protocols.backend import Count, Name
from pvlm_protocols.limits import (
    MAX_ANSWER_TOKENS,
    MAX_END_TOKENS,
    MAX_ERROR_CHARACTERS,
    MAX_ID,
    MAX_TRACEBACK_CHARACTERS,
)
from pvlm_protocols.numbers import Ratio, Serial, Share, Token

ErrorText = Annotated[str, Meta(max_length=MAX_ERROR_CHARACTERS)]
TracebackText = Annotated[str, Meta(max_length=MAX_TRACEBACK_CHARACTERS)]

Coupling = Literal["auto", "greedy", "speculative", "gumbel"]
FinishReason = Literal["stop", "length"]
TargetMode = Literal["turns", "together", "alone"]
"""``turns``: verify a window, add a token, wait for the next window. ``together``: verify windows while the draft
writes further ones. ``alone``: decode, and verify only windows that have arrived.
"""


class SamplingOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How tokens are chosen: the options that a caller sets and an actor reads. The filters work in this order."""

    max_tokens: Annotated[int, Meta(ge=1, le=MAX_ANSWER_TOKENS)] = 256
    """The largest number of tokens in the answer."""
    temperature: Annotated[float, Meta(ge=0, le=sys.float_info.max)] = 0.0
    """0: greedy; else the logits are divided by it, and then filtered."""
    top_k: Count = 0
    """Choose among the K likeliest tokens; 0: among all."""
    top_p: Annotated[float, Meta(gt=0, le=1)] = 1.0
    """Choose among the fewest tokens that together have this probability; 1: off."""
    min_p: Share = 0.0
    """Drop tokens below this share of the largest probability; 0: off."""


class Sampling(SamplingOptions, frozen=True, kw_only=True):
    """How tokens are chosen and where the answer ends.

    ``vocab_limit``: ids at or above it do not exist for both models. ``coupling`` is resolved (never ``auto``) before
    it travels.
    """

    seed: Serial = 0
    coupling: Coupling = "greedy"
    vocab_limit: Annotated[int, Meta(ge=1, le=MAX_ID)]
    end_token_ids: Annotated[tuple[Token, ...], Meta(max_length=MAX_END_TOKENS)] = ()


class Pruning(msgspec.Struct, frozen=True, kw_only=True):
    """Which video tokens the draft may see.

    ``ratio`` is the share that is dropped; ``early_layer`` 0 lets the target choose by its depth.
    """

    method: Name = "uv"
    ratio: Ratio = 0.0
    early_layer: Count = 0
    compact_positions: bool = False
    seed: Serial = 0


class Schedule(msgspec.Struct, frozen=True, kw_only=True):
    """How draft and target share the work.

    ``mode``: with ``turns`` (plain speculative decoding) the draft writes one window and waits for its verdict; with
    ``together`` it may be one further window ahead; with ``alone`` the session has no draft. ``overlap_prefill``:
    publish the mask as soon as the early layers have run, not after the prefill.
    """

    mode: TargetMode = "together"
    overlap_prefill: bool = True
