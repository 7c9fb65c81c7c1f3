"""What the rows of several measurements share: pooled acceptance, quartiles, and figures taken from an answer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import quantiles
from typing import Any, NamedTuple, Protocol

from pvlm.errors import ModelError
from pvlm.results import ratio_or_none

Quartiles = tuple[float, float]
"""The first and the third."""


class Tested(Protocol):
    """Anything that counts drafted tokens which were tested, such as `AnswerStats`."""

    @property
    def accepted_tokens(self) -> int: ...

    @property
    def rejected_tokens(self) -> int: ...


class Acceptance(NamedTuple):
    """``rate``: accepted over tested tokens; ``mean_length``: accepted tokens per rejection; None without any."""

    rate: float | None
    mean_length: float | None


def pooled_acceptance(answers: Iterable[Tested]) -> Acceptance:
    """The acceptance over all tested tokens of several answers."""
    counts = [(answer.accepted_tokens, answer.rejected_tokens) for answer in answers]
    accepted, rejected = (sum(column) for column in zip(*counts, strict=True)) if counts else (0, 0)
    return Acceptance(ratio_or_none(accepted, accepted + rejected), ratio_or_none(accepted, rejected))


def quartiles(values: Sequence[float]) -> Quartiles:
    if len(values) == 1:
        return values[0], values[0]
    first, _, third = quantiles(values, n=4, method="inclusive")
    return first, third


def measured(value: float | None) -> float:
    """Raises ModelError for None: an answer was too short to measure the figure."""
    if value is None:
        raise ModelError("the answers were too short to measure anything: ask for longer ones")
    return value


def same_named(row: type, source: object) -> dict[str, Any]:
    """The attributes of ``source`` that are also fields of a row, by name, to construct the row from."""
    return {name: getattr(source, name) for name in row.__annotations__ if hasattr(source, name)}
