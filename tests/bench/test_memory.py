"""The most memory of processes."""

from __future__ import annotations

import mmap
import os

import numpy as np
import pytest

from pvlm.bench.memory import peak_mb, reset_peak


def test_the_peak_is_that_since_it_was_reset() -> None:
    own = [os.getpid()]
    reset_peak(own)
    before = peak_mb(own)
    block = mmap.mmap(-1, 40_000_000)  # memory of its own, not what was freed before
    np.frombuffer(block, np.uint8)[:] = 1
    with_block = peak_mb(own)
    assert 35 < with_block - before < 60
    block.close()
    assert peak_mb(own) == pytest.approx(with_block, abs=5)  # the kernel counts in batches
    reset_peak(own)
    assert peak_mb(own) < with_block - 30
