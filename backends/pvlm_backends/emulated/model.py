"""The specification of an emulated model: a JSON object, in a file or as text. Imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import msgspec
import numpy as np
from msgspec import Meta

from pvlm_protocols.backend import CheckpointError

Ms = Annotated[float, Meta(ge=0)]
Share = Annotated[float, Meta(ge=0, le=1)]
Count = Annotated[int, Meta(ge=1)]


class Phase(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``tokens`` answer positions, of which the draft guesses a share ``beta`` right. The last phase has no end."""

    beta: Share
    tokens: Count | None = None


class EmulatedModel(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An emulated model. Times in ms.

    Exactly one of ``pass_ms`` and ``pruned_pass_ms`` is required. ``acceptance``, ``trace`` and ``pruned_pass_ms`` are
    for drafts only. Without the first two, a draft is always right.
    """

    pass_ms: Ms | dict[Count, Ms] | None = None
    """T(n), a pass over n new tokens: constant, or given at some n.

    It is linear between these and constant below the smallest. Above the largest it has the slope from the smallest to
    the largest, or 0 if that is negative.
    """
    pruned_pass_ms: dict[Share, Ms] | None = None
    """T_q by the pruned share of the video tokens, constant in n. Linear between these shares, constant outside."""
    further_token: Ms = 0.0
    """What each further token of a pass costs, as a share of the pass over one. In a draft's pass each session and each
    branch has one token, so it is what each further session or branch costs.
    """
    prefill_ms: Ms = 0.0
    """Time of the whole prompt; a pruned prompt takes its share."""
    open_ms: Ms = 0.0
    """Time of the vision tower; 0 without a video."""
    time_scale: Ms = 1.0
    """Multiplies every time."""

    video_tokens: Count = 1024
    layers: Count = 8
    vocab_size: Annotated[int, Meta(ge=3)] = 512
    seed: int = 0
    """Decides the text, and the positions that a draft guesses right."""
    answer_tokens: Annotated[int, Meta(ge=0)] | None = None
    """The end token follows after so many tokens; None: the text has no end."""

    acceptance: Share | list[Phase] | None = None
    """Share of the positions that are guessed right, independently of each other; or several phases."""
    stratified: bool = False
    """With ``acceptance``: the same distribution of run lengths between two wrong guesses, without noise.

    See `StratifiedGuesses`.
    """
    hit_rates: tuple[Share, ...] = ()
    """Where a draft's guess is wrong: the share of these positions at which the target's token is the draft's best
    other token, one of its two best others, ... Without it, the target's token is none of its likely ones.
    """
    trace: str | None = None
    """Path of a recorded answer whose wrong guesses are repeated; see `TracedGuesses`."""

    def __post_init__(self) -> None:
        if (self.pass_ms is None) == (self.pruned_pass_ms is None):
            raise ValueError("give exactly one of pass_ms and pruned_pass_ms")
        if self.pass_ms == {} or self.pruned_pass_ms == {}:
            raise ValueError("pass times need at least one point")
        if self.acceptance is not None and self.trace is not None:
            raise ValueError("give acceptance or trace, not both")
        if self.stratified and self.acceptance is None:
            raise ValueError("stratified is a way of drawing acceptance: give that too")
        if list(self.hit_rates) != sorted(self.hit_rates):
            raise ValueError("hit_rates must not fall: each includes the one before")
        if isinstance(self.acceptance, list):
            if not self.acceptance:
                raise ValueError("acceptance needs at least one phase")
            if any(phase.tokens is None for phase in self.acceptance[:-1]):
                raise ValueError("every phase but the last needs its number of tokens")

    def pass_s(self, tokens: int, pruned: float) -> float:
        """Seconds for a pass over ``tokens`` new tokens, if a share ``pruned`` of the video tokens is missing."""
        if self.pruned_pass_ms is not None:
            ms = _between(self.pruned_pass_ms, pruned)
        elif isinstance(self.pass_ms, dict):
            ms = _between(self.pass_ms, tokens)
            largest, smallest = max(self.pass_ms), min(self.pass_ms)
            if tokens > largest > smallest:
                slope = (self.pass_ms[largest] - self.pass_ms[smallest]) / (largest - smallest)
                ms += max(0.0, slope) * (tokens - largest)
        else:
            ms = self.pass_ms or 0.0
        return ms * (1 + self.further_token * (tokens - 1)) * self.time_scale / 1000

    def prefill_s(self, share: float) -> float:
        """Seconds for ``share`` of the prompt's tokens."""
        return self.prefill_ms * share * self.time_scale / 1000

    def open_s(self) -> float:
        """Seconds for the vision tower."""
        return self.open_ms * self.time_scale / 1000


def read_model(model: str) -> EmulatedModel:
    """Read an emulated model from the path of a JSON file, or from the JSON object itself.

    Raises:
        CheckpointError: the file cannot be read, is not JSON, or does not describe a model.
    """
    if model.lstrip().startswith("{"):
        return _decode(model.encode(), "the emulated model")
    try:
        content = Path(model).expanduser().read_bytes()
    except OSError as error:
        raise CheckpointError(f"{model!r} cannot be read as an emulated model: {error}") from error
    return _decode(content, f"the emulated model {model!r}")


def _decode(content: bytes, what: str) -> EmulatedModel:
    try:
        return msgspec.json.decode(content, type=EmulatedModel)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{what} is not valid: {error}") from error


def _between(points: dict[int, float] | dict[float, float], at: float) -> float:
    """Linear between points, constant outside."""
    known = sorted(points.items())
    return float(np.interp(at, [place for place, _ in known], [ms for _, ms in known]))
