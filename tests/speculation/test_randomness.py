"""Counter-based randomness: frozen values, a second implementation, and statistics.

Statistical tests have fixed seeds and fail at a significance of 1e-4.
"""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from pvlm.speculation import randomness
from pvlm.speculation.randomness import gumbel_noise, hashed_words, uniform, uniform_noise

SIGNIFICANCE = 1e-4
WORD = (1 << 64) - 1

GOLDEN_WORDS = [
    [4562032078233679233, 2674158614843005239, -1306967928737499806],
    [-1148137839070435195, 1950530531966082390, 2841582238262574189],
]
GOLDEN_SEEDED = [[-2721831182143029114]]
GOLDEN_UNIFORM = (0.07728332617549849, 0.1407483280137959)
GOLDEN_NOISE = [-0.8564938739541823, -0.3704478911548098, -0.7800381069117319]


def reference_word(seed: int, position: int, token: int) -> int:
    """`hashed_words` in unbounded integers."""

    def mix(x: int) -> int:
        x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & WORD
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & WORD
        return x ^ (x >> 31)

    golden = 0x9E3779B97F4A7C15
    key = mix((mix((seed + golden) & WORD) + position * golden) & WORD)
    return mix((mix((key + token * golden) & WORD) + key) & WORD)


@given(
    seed=st.integers(-(2**63), 2**64),
    positions=st.lists(st.integers(0, 10**6), min_size=1, max_size=3),
    tokens=st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=9),
)
def test_the_hash_is_what_it_says(seed: int, positions: list[int], tokens: list[int]) -> None:
    words = hashed_words(seed, positions, torch.tensor(tokens))
    assert [[word & WORD for word in row] for row in words.tolist()] == [
        [reference_word(seed, position, token) for token in tokens] for position in positions
    ]


@given(seed=st.integers(0, 2**64 - 1), tokens=st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=99))
def test_both_implementations_give_the_same_bits(seed: int, tokens: list[int]) -> None:
    """numpy's is for the CPU, torch's for accelerators; both run here."""
    keys, ids = [seed, seed ^ WORD], torch.tensor(tokens)
    signed = torch.tensor([randomness._signed(key) for key in keys]).unsqueeze(1)
    by_torch = randomness._hashed_by_torch(signed, ids)
    assert torch.equal(by_torch, torch.from_numpy(randomness._hashed_by_numpy(keys, ids.numpy())))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_an_accelerator_gives_the_same_bits() -> None:
    ids = torch.arange(152_064)
    assert torch.equal(uniform_noise(7, [0, 5], ids.cuda()).cpu(), uniform_noise(7, [0, 5], ids))


def test_frozen_words() -> None:
    """A change here changes the text of every seeded answer."""
    words = hashed_words(0, [0, 1], torch.tensor([0, 1, 151_935]))
    assert words.tolist() == GOLDEN_WORDS
    assert hashed_words(12345, [7], torch.tensor([42])).tolist() == GOLDEN_SEEDED


def test_frozen_uniform() -> None:
    assert uniform(0, "draft", "propose", 0, 0, 0) == GOLDEN_UNIFORM[0]
    assert uniform(12345, "target", "accept", 3, 2, 7) == GOLDEN_UNIFORM[1]


def test_frozen_noise() -> None:
    noise = gumbel_noise(12345, [7], torch.tensor([0, 1, 2]))[0].tolist()
    assert noise == pytest.approx(GOLDEN_NOISE, rel=1e-14)


def test_noise_of_an_id_does_not_depend_on_the_others() -> None:
    everything = uniform_noise(5, [3, 4], torch.arange(1000))
    padded = uniform_noise(5, [3, 4], torch.arange(1024))
    some = torch.tensor([999, 3, 500, 3])
    assert torch.equal(padded[:, :1000], everything)
    assert torch.equal(uniform_noise(5, [4], some)[0], everything[1, some])
    full = gumbel_noise(5, [3, 4], torch.arange(1000))
    assert gumbel_noise(5, [4], some)[0].tolist() == pytest.approx(full[1, some].tolist(), rel=1e-14)


@pytest.mark.parametrize("word", [0, -1])
def test_the_interval_is_open(word: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The extreme words, too, give finite noise: nothing is 0 or 1, even after rounding."""
    monkeypatch.setattr(randomness, "hashed_words", lambda *_: torch.tensor([[word]]))
    assert 0 < float(uniform_noise(0, [0], torch.tensor([0]))) < 1
    assert math.isfinite(gumbel_noise(0, [0], torch.tensor([0])))

    class Digest:
        def digest(self) -> bytes:
            return (word & WORD).to_bytes(8, "little")

    monkeypatch.setattr(randomness, "blake2b", lambda *_, **__: Digest())
    assert 0 < uniform(0, "draft", "propose", 0, 0, 0) < 1


def grid(axis: str) -> np.ndarray:
    """4096 x 16 uniform numbers; columns are neighbouring positions, ids or seeds."""
    if axis == "id":
        return uniform_noise(7, range(4096), torch.arange(1000, 1016)).numpy()
    if axis == "position":
        return uniform_noise(7, range(16), torch.arange(4096)).numpy().T
    if axis == "seed":
        return np.stack([uniform_noise(seed, [5], torch.arange(4096))[0].numpy() for seed in range(16)], axis=1)
    roles = ["draft", "target"]
    purposes = ["propose", "accept", "residual", "choose"]
    keys = [(r, p, e) for r, p, e in product(roles, purposes, range(2))]
    return np.array([[uniform(1, r, p, 0, e, t) for r, p, e in keys] for t in range(4096)])  # type: ignore[arg-type]


@pytest.mark.parametrize("axis", ["id", "position", "seed", "stream"])
def test_uniform_and_independent_of_the_neighbours(axis: str) -> None:
    u = grid(axis)
    assert stats.kstest(u.ravel(), "uniform").pvalue > SIGNIFICANCE
    # Pairs of neighbouring columns, and of the first with every other, fall evenly into 8 x 8 cells.
    pairs = [(i, i + 1) for i in range(15)] + [(0, i) for i in range(2, 16)]
    for left, right in pairs:
        cells = np.histogram2d(u[:, left], u[:, right], bins=8, range=[[0, 1], [0, 1]])[0]
        assert stats.chisquare(cells.ravel()).pvalue > SIGNIFICANCE / len(pairs)
    # Low bits as well as high ones.
    low = (u * 2**52).astype(np.int64) & 0xFF
    assert stats.chisquare(np.bincount(low.ravel(), minlength=256)).pvalue > SIGNIFICANCE


def test_these_statistics_notice_a_weak_hash() -> None:
    """A linear congruence instead of a mixer is evenly spread too, but neighbours are tied."""
    tokens = np.arange(4096, dtype=np.uint64)
    columns = [((tokens * 16 + j) * np.uint64(0x9E3779B97F4A7C15) >> np.uint64(12)) / 2**52 for j in range(2)]
    cells = np.histogram2d(columns[0], columns[1], bins=8, range=[[0, 1], [0, 1]])[0]
    assert stats.chisquare(cells.ravel()).pvalue < 1e-12


def test_noise_is_gumbel() -> None:
    noise = gumbel_noise(3, range(8), torch.arange(4096)).numpy().ravel()
    assert stats.kstest(noise, "gumbel_r").pvalue > SIGNIFICANCE


def test_every_part_of_a_key_counts() -> None:
    keys = [
        (seed, role, purpose, session, epoch, position)
        for seed, role, purpose, session, epoch, position in product(
            (0, 1), ("draft", "target"), ("propose", "accept", "residual", "choose"), (0, 1, 11), (0, 1, 11), (0, 1, 11)
        )
    ]
    assert len({uniform(*key) for key in keys}) == len(keys)  # type: ignore[arg-type]
