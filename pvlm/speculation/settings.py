"""Settings of a distribution, and the choice of a coupling. Imports no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from pvlm.errors import OptionError
from pvlm_protocols.limits import MAX_ID
from pvlm_protocols.messages import Coupling as CouplingName
from pvlm_protocols.messages import Sampling

MIN_TEMPERATURE = 1e-5
"""Smallest temperature for which ``logits / temperature`` stays in the range of float32; 0 means greedy."""


@dataclass(frozen=True)
class DistributionSettings:
    """How logits become the *processed* distribution: temperature, then top-k, then top-p, then min-p.

    ``temperature`` 0 is greedy; ``top_k`` 0, ``top_p`` 1 and ``min_p`` 0 are off. Raises `OptionError`.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0

    def __post_init__(self) -> None:
        if not math.isfinite(self.temperature) or (self.temperature != 0 and self.temperature < MIN_TEMPERATURE):
            raise OptionError(f"temperature is {self.temperature}: use 0 (greedy), or {MIN_TEMPERATURE} and above")
        if not 0 <= self.top_k <= MAX_ID:
            raise OptionError(f"top_k is {self.top_k}: use 0 (off) or a positive number up to {MAX_ID}")
        if not 0 < self.top_p <= 1:
            raise OptionError(f"top_p is {self.top_p}: it must be in (0, 1], where 1 is off")
        if not 0 <= self.min_p <= 1:
            raise OptionError(f"min_p is {self.min_p}: it must be in [0, 1], where 0 is off")

    @classmethod
    def of(cls, sampling: Sampling) -> DistributionSettings:
        return cls(sampling.temperature, sampling.top_k, sampling.top_p, sampling.min_p)


def resolve_coupling(
    requested: CouplingName, *, temperature: float, seeded: bool
) -> Literal["greedy", "speculative", "gumbel"]:
    """The coupling that an answer uses. ``seeded``: the caller gave a seed.

    Temperature 0 is always greedy. ``auto`` is Gumbel with a seed, because the text is then a function of prompt and
    seed alone. Without a seed it is speculative sampling, which accepts more. Raises `OptionError`.
    """
    if temperature == 0:
        return "greedy"
    match requested:
        case "auto":
            return "gumbel" if seeded else "speculative"
        case "greedy":
            raise OptionError(f"coupling 'greedy' needs temperature 0, but temperature is {temperature}")
        case "speculative" | "gumbel":
            return requested
        case _:
            raise OptionError(f"unknown coupling {requested!r}: use 'auto', 'greedy', 'speculative' or 'gumbel'")
