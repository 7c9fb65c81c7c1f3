"""Products with weights that may be packed: the same values whatever is chosen, and when it is chosen."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pvlm_backends.raw.linear import Linear, linear


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def exact(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return x.double() @ weight.double()


def check(found: torch.Tensor, expected: torch.Tensor, terms: int) -> None:
    """What packing may do to each of ``terms`` weights comes on top of float32's rounding of a sum."""
    atol = float(expected.abs().max()) * 1e-5 + terms * 2.0**-24
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=atol)


@given(
    shape=st.tuples(st.integers(1, 40), st.integers(1, 70), st.integers(1, 70)),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
    scale=st.sampled_from([1e-9, 1e-3, 1.0, 1e4, 1e20]),
    biased=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_the_values_are_those_of_the_weights_in_any_dtype(
    shape: tuple[int, int, int], dtype: torch.dtype, scale: float, biased: bool, seed: int
) -> None:
    n, inner, outer = shape
    source = torch.Generator().manual_seed(seed)
    weight = (torch.randn(inner, outer, generator=source) * scale).clamp(-1e4, 1e4).to(dtype).float()
    x = torch.randn(n, inner, generator=source)
    bias = torch.randn(outer, generator=source) if biased else None
    product = linear(weight, bias)
    check(product.write(x, torch.empty(n, outer)), exact(x, weight) + (0 if bias is None else bias), inner)
    total = torch.ones(n, outer)
    product.add_to(total, x)
    check(total, exact(x, weight) + 1, inner)


def test_several_threads_give_the_same_values(threads: int) -> None:
    weight = torch.randn(300, 200).bfloat16().float()
    x, bias = torch.randn(9, 300), torch.randn(200)
    product = linear(weight, bias)
    check(product.write(x, torch.empty(9, 200)), exact(x, weight) + bias, 300)
    total = torch.zeros(9, 200)
    product.add_to(total, x)
    check(total, exact(x, weight), 300)


@pytest.mark.skipif("fbgemm" not in torch.backends.quantized.supported_engines, reason="torch without FBGEMM")
def test_only_weights_that_keep_their_values_are_packed(threads: int) -> None:
    half = torch.randn(16, 16).bfloat16().float()
    assert type(linear(half)) is not Linear
    assert type(linear(half / 3)) is Linear  # float32 numbers that are no float16
    too_large = half.clone()
    too_large[3, 3] = 65536.0
    assert type(linear(too_large)) is Linear
    not_finite = half.clone()
    not_finite[3, 3] = torch.nan
    assert type(linear(not_finite)) is Linear
