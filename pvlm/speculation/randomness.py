"""Counter-based randomness: every number is a function of its key, and there is no generator state.

If a draw of the draft and a draw of the target were correlated, the distribution of the answer would change. So the key
of each draw has its role and purpose. Under Gumbel coupling both sides share the noise, so its key has neither.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pvlm_protocols.backend import Role

Purpose = Literal["propose", "accept", "residual", "choose"]

_BITS = 52
"""Random bits of a uniform number: ``(bits + 1/2) / 2**52`` is exact in float64 and never 0 or 1."""

_WORD = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_FIRST_FACTOR = 0xBF58476D1CE4E5B9
_SECOND_FACTOR = 0x94D049BB133111EB


def uniform(seed: int, role: Role, purpose: Purpose, session: int, epoch: int, position: int) -> float:
    """A number in the open interval (0, 1) with 52 random bits; different keys give independent numbers (BLAKE2b)."""
    key = f"{seed}|{role}|{purpose}|{session}|{epoch}|{position}".encode()
    bits = int.from_bytes(blake2b(key, digest_size=8, person=b"pvlm.uniform").digest(), "little") >> (64 - _BITS)
    return (bits + 0.5) * 2.0**-_BITS


def hashed_words(seed: int, positions: Sequence[int], ids: Tensor) -> Tensor:
    """64 mixed bits for each of (seed, position, id): int64 ``(len(positions), len(ids))``, on the device of ``ids``.

    ``ids``: int64 ``(m,)``. The seed and the position are folded into a key; then ``mix(mix(key + id * golden) +
    key)``, where ``mix`` is the finaliser of SplitMix64 (Stafford's variant 13). Integer arithmetic modulo 2**64, so
    every device gives the same bits. An id's word does not depend on the other ids.
    """
    seed_key = _mix((seed + _GOLDEN) & _WORD)
    row_keys = [_mix((seed_key + position * _GOLDEN) & _WORD) for position in positions]
    if ids.device.type == "cpu":
        return torch.from_numpy(_hashed_by_numpy(row_keys, ids.numpy()))
    keys = torch.tensor([_signed(key) for key in row_keys], dtype=torch.int64, device=ids.device).unsqueeze(1)
    return _hashed_by_torch(keys, ids)


def uniform_noise(seed: int, positions: Sequence[int], ids: Tensor) -> Tensor:
    """A number in the open interval (0, 1) for each of (seed, position, id): float64 ``(len(positions), len(ids))``."""
    words = hashed_words(seed, positions, ids)
    if words.device.type == "cpu":
        unsigned = words.numpy().view(np.uint64)
        return torch.from_numpy(((unsigned >> np.uint64(64 - _BITS)).astype(np.float64) + 0.5) * 2.0**-_BITS)
    bits = (words >> (64 - _BITS)).bitwise_and_((1 << _BITS) - 1)
    return bits.to(torch.float64).add_(0.5).mul_(2.0**-_BITS)


def gumbel_noise(seed: int, positions: Sequence[int], ids: Tensor) -> Tensor:
    """Standard Gumbel noise ``-log(-log(u))`` over `uniform_noise`: float64 ``(len(positions), len(ids))``.

    ``positions`` are answer indices, never cache rows. The noise of an id is the same in a subset of ids, in a padded
    vocabulary and on any device, up to the last bit of the device's logarithm.
    """
    return uniform_noise(seed, positions, ids).log_().neg_().log_().neg_()


def _mix(word: int) -> int:
    word = ((word ^ (word >> 30)) * _FIRST_FACTOR) & _WORD
    word = ((word ^ (word >> 27)) * _SECOND_FACTOR) & _WORD
    return word ^ (word >> 31)


def _hashed_by_numpy(row_keys: list[int], ids: NDArray[np.int64]) -> NDArray[np.int64]:
    """On the CPU a draft step is so short that the overhead of torch's operators would be noticeable."""
    keys = np.array(row_keys, np.uint64)[:, None]
    words = ids.view(np.uint64) * np.uint64(_GOLDEN) + keys
    for again in (True, False):
        words ^= words >> np.uint64(30)
        words *= np.uint64(_FIRST_FACTOR)
        words ^= words >> np.uint64(27)
        words *= np.uint64(_SECOND_FACTOR)
        words ^= words >> np.uint64(31)
        if again:
            words += keys
    return words.view(np.int64)


def _hashed_by_torch(keys: Tensor, ids: Tensor) -> Tensor:
    """int64 products wrap. torch shifts in copies of the sign bit, which the masks remove."""
    words = ids.unsqueeze(0) * _signed(_GOLDEN) + keys
    for again in (True, False):
        words ^= (words >> 30).bitwise_and_((1 << 34) - 1)
        words *= _signed(_FIRST_FACTOR)
        words ^= (words >> 27).bitwise_and_((1 << 37) - 1)
        words *= _signed(_SECOND_FACTOR)
        words ^= (words >> 31).bitwise_and_((1 << 33) - 1)
        if again:
            words += keys
    return words


def _signed(word: int) -> int:
    """The same 64 bits as a signed integer."""
    return word - (1 << 64) if word >> 63 else word
