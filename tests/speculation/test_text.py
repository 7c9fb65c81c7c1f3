"""Agreement of two token lists."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pvlm.speculation.text import agreement

tokens = st.lists(st.integers(0, 2), max_size=8)


@given(a=tokens, b=tokens)
def test_agreement_is_the_common_prefix(a: list[int], b: list[int]) -> None:
    count = agreement(a, b)
    assert count == agreement(b, a)
    assert a[:count] == b[:count]
    assert count == min(len(a), len(b)) or a[count] != b[count]
