"""What the rows of several measurements share."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from pvlm import ModelError
from pvlm.bench.methods import Measurement
from pvlm.bench.rows import measured, pooled_acceptance, quartiles, same_named


@dataclass
class Counted:
    accepted_tokens: int
    rejected_tokens: int


def test_acceptance_is_pooled_over_tokens() -> None:
    """Not over answers: a long answer weighs more."""
    assert pooled_acceptance([Counted(9, 1), Counted(0, 2)]) == (0.75, 3.0)
    assert pooled_acceptance([Counted(4, 0)]) == (1.0, None)
    assert pooled_acceptance([Counted(0, 0)]) == pooled_acceptance([]) == (None, None)


def test_quartiles() -> None:
    assert quartiles([3.0]) == (3.0, 3.0)
    assert quartiles([1.0, 2.0, 3.0, 4.0, 5.0]) == (2.0, 4.0)


def test_a_figure_that_is_missing() -> None:
    assert measured(0.0) == 0.0
    with pytest.raises(ModelError, match="too short to measure"):
        measured(None)


def test_only_figures_of_the_row_are_taken() -> None:
    class Source(Counted):
        other = 1

    assert same_named(Measurement, Source(2, 1)) == {"accepted_tokens": 2, "rejected_tokens": 1}
