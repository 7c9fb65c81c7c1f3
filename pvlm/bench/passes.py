"""The passes of a model, compared with the limit of the machine.

A pass must read every weight and the cache once, and multiply. So it takes at least the larger of two times: bytes over
memory bandwidth, and operations over the speed of a large matrix product. Both speeds are measured here, on as many
threads. The bandwidth is measured on a buffer with as many bytes as the pass reads. So if a small model's weights stay
in a CPU cache, the bandwidth of that cache counts.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from statistics import median
from typing import NamedTuple

import msgspec
import numpy as np
import torch

from pvlm.bench.threads import torch_threads
from pvlm.config import BUNDLED, EngineConfig, bundled
from pvlm.errors import ModelError, OptionError
from pvlm.workers.backends import choose_backend
from pvlm_protocols.backend import BackendError, LoadOptions, PassCost, Prompt, Role

QUESTION = "Describe the video in detail."
FRAME_SIDE = 64
"""Pixels; frames are noise, and the processor resizes them."""
LeastTime = Callable[[int, int], float]
_MATRIX, _READS, _WARM_UP = 1024, 15, 3


class PassRow(msgspec.Struct, frozen=True, kw_only=True):
    """One kind of pass. ``rows``: rows of the cache after the pass; ``ms``: a median.

    ``read_mb``: weights and cache, 10^6 bytes; ``gflop``: 10^9 operations. ``limit_ms``: the least time for them on
    this machine; ``of_limit``: ``limit_ms`` over ``ms``. They are None for a backend that does not report its costs
    (`PassCost`).
    """

    role: Role
    layers: int
    tokens: int
    rows: int
    ms: float
    read_mb: float | None
    gflop: float | None
    bandwidth_gb_s: float | None
    limit_ms: float | None
    of_limit: float | None


class PassReport(msgspec.Struct, frozen=True, kw_only=True):
    """``gflop_s``: speed of a large float32 product. ``prefill_ms`` and ``tower_ms``: by role."""

    threads: int
    gflop_s: float
    prefill_ms: dict[Role, float]
    tower_ms: dict[Role, float]
    passes: list[PassRow]


def measure_passes(
    config: EngineConfig,
    *,
    tokens: Sequence[int] = (1, 2, 4, 8, 12),
    frames: int = 32,
    rounds: int = 30,
) -> PassReport:
    """Time passes of target and draft over each number in ``tokens``.

    They run on ``config.threads`` threads (default: 1) of this process. The draft's cache has the share of the video
    tokens that ``config.prune_ratio`` keeps. Sizes take turns, so that a drift of the machine affects all alike.

    Raises OptionError for counts below 1, ConfigError for an unknown backend and ModelError if a model does not load.
    """
    for what, least in (("tokens", min(tokens, default=0)), ("frames", frames), ("rounds", rounds)):
        if least < 1:
            raise OptionError(f"{least} {what}: at least 1 is needed")
    threads = config.threads or 1
    with _measuring(threads):
        gflop_s = matrix_gflop_s()
        models = [_LoadedModel(config, role, threads) for role in ("target", "draft") if _checkpoint(config, role)]
        for model in models:
            model.prefill(frames, max(tokens))
        passes = [row for model in models for row in model.time_passes(gflop_s, tokens, rounds)]
    return PassReport(
        threads=threads,
        gflop_s=gflop_s,
        tower_ms={model.role: model.tower_ms for model in models},
        prefill_ms={model.role: model.prefill_ms for model in models},
        passes=passes,
    )


def matrix_gflop_s() -> float:
    """10^9 operations per second in a product of two large float32 matrices."""
    left, right = torch.randn(_MATRIX, _MATRIX), torch.randn(_MATRIX, _MATRIX)
    return 2 * _MATRIX**3 / 1e6 / _median_ms(lambda: torch.mm(left, right))


def read_gb_s(size: int) -> float:
    """10^9 bytes per second in reading a buffer of ``size`` bytes repeatedly."""
    buffer = torch.ones(size // 4)
    return size / 1e6 / _median_ms(lambda: torch.sum(buffer))


def least_pass_time(config: EngineConfig, role: Role, threads: int) -> LeastTime | None:
    """Load a model, measure this machine on ``threads`` threads of this process, and return the least time in ms for a
    pass by its tokens and the rows in the cache afterwards. None where the backend does not report its costs.

    Raises ModelError and ConfigError as `measure_passes`.
    """
    with _measuring(threads):
        gflop_s = matrix_gflop_s()
        backend = _LoadedModel(config, role, threads).backend
    if not isinstance(backend, PassCost):
        return None
    cost = backend

    @cache
    def least_ms(tokens: int, rows: int) -> float:
        with _measuring(threads):
            return _limit(cost, tokens, rows, gflop_s).ms

    return least_ms


@contextmanager
def _measuring(threads: int) -> Iterator[None]:
    """Compute on so many threads. Raises ModelError where a backend fails."""
    try:
        with torch_threads(threads):
            yield
    except BackendError as error:
        raise ModelError(f"the passes cannot be measured: {error}") from error


class _Limit(NamedTuple):
    read: int
    operations: int
    bandwidth_gb_s: float
    ms: float


def _limit(backend: PassCost, tokens: int, rows: int, gflop_s: float) -> _Limit:
    read, operations = backend.pass_cost(tokens, rows)
    bandwidth = read_gb_s(read)
    return _Limit(read, operations, bandwidth, max(read / bandwidth, operations / gflop_s) / 1e6)


class _LoadedModel:
    def __init__(self, config: EngineConfig, role: Role, threads: int) -> None:
        checkpoint = _checkpoint(config, role)
        assert checkpoint is not None
        draft = role == "draft"
        dtype = (draft and config.draft_dtype) or config.dtype
        options = LoadOptions(checkpoint, role=role, dtype=dtype, threads=threads)
        plugin = choose_backend(config.backend_of(role), options).backend
        self.role = role
        self._prune_ratio = config.prune_ratio if draft else 0.0
        self._processor = plugin.processor(checkpoint)
        self.backend = plugin.load(options)

    def prefill(self, frames: int, capacity: int) -> None:
        noise = np.random.default_rng(0).integers(0, 256, (frames, FRAME_SIDE, FRAME_SIDE, 3), dtype=np.uint8)
        prompt = Prompt(QUESTION, self._processor.resize(noise), tuple(map(float, range(frames))))
        started = time.perf_counter()
        self._session = self.backend.open(prompt, capacity)
        self.tower_ms = (time.perf_counter() - started) * 1e3
        keep = None
        if self._prune_ratio:
            share = torch.rand(self._session.video_tokens, generator=torch.Generator().manual_seed(0))
            keep = share >= self._prune_ratio
        started = time.perf_counter()
        self._session.prefill(keep)
        self.prefill_ms = (time.perf_counter() - started) * 1e3
        dropped = 0 if keep is None else int((~keep).sum())
        self._rows = self._session.prompt_tokens - dropped

    def time_passes(self, gflop_s: float, tokens: Sequence[int], rounds: int) -> list[PassRow]:
        times: dict[int, list[float]] = {count: [] for count in tokens}
        for turn in range(_WARM_UP + rounds):
            for count, measured in times.items():
                started = time.perf_counter()
                self._session.extend([1] * count)
                if turn >= _WARM_UP:
                    measured.append((time.perf_counter() - started) * 1e3)
                self._session.truncate(0)
        return [self._row(count, median(measured), gflop_s) for count, measured in times.items()]

    def _row(self, count: int, ms: float, gflop_s: float) -> PassRow:
        rows = self._rows + count
        limit = _limit(self.backend, count, rows, gflop_s) if isinstance(self.backend, PassCost) else None
        return PassRow(
            role=self.role,
            layers=self.backend.info.layers,
            tokens=count,
            rows=rows,
            ms=ms,
            read_mb=None if limit is None else limit.read / 1e6,
            gflop=None if limit is None else limit.operations / 1e9,
            bandwidth_gb_s=None if limit is None else limit.bandwidth_gb_s,
            limit_ms=None if limit is None else limit.ms,
            of_limit=None if limit is None else limit.ms / ms,
        )


def _checkpoint(config: EngineConfig, role: Role) -> str | None:
    model = config.target if role == "target" else config.draft_model
    return bundled(role) if model == BUNDLED else model


def _median_ms(work: Callable[[], object]) -> float:
    times = []
    for _ in range(_READS):
        started = time.perf_counter()
        work()
        times.append((time.perf_counter() - started) * 1e3)
    return median(times)
