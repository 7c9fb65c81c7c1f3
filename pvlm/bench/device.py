"""Times of passes of full-size decoders with random weights on a device, beside transformers on the same device.

The prompt is text with as many tokens as a video has, because a decoder treats all tokens alike. Pruned tokens are left
out. So the figures include neither the vision tower nor the choice of tokens. A time lasts from a call until the device
has finished all its work.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from threading import Thread
from typing import Literal

import msgspec
import torch

from pvlm.bench.architectures import PAIRS, write_architecture
from pvlm.bench.threads import torch_threads
from pvlm.errors import ModelError, OptionError
from pvlm.plugins import load_plugin
from pvlm.speculation.pruning import default_early_layer
from pvlm_protocols.backend import (
    ENTRY_POINT_GROUP,
    Backend,
    BackendError,
    EarlyStates,
    GreedyDrafting,
    LoadOptions,
    Prompt,
    Role,
    Session,
)

What = Literal["pass", "drafted token", "prefill", "prefill beside the draft's"]
TEXT_TOKENS = 64
"""Approximate number of prompt tokens that remain when all of the video is dropped."""
_WORD = " color"
_WARM_UP = 2


class DeviceRow(msgspec.Struct, frozen=True, kw_only=True):
    """One measurement of one backend. ``ms`` is the median time of a pass, of one token of a window, or of a prefill.

    ``tokens``: of the pass, or of the drafted window. ``ratio``: share of the video tokens that is dropped. ``rows``:
    rows in the cache before the pass; for a prefill, the rows that it fills. The time of a prefill beside the draft's
    ends with the target's prefill.
    """

    backend: str
    role: Role
    what: What
    tokens: int
    ratio: float
    rows: int
    ms: float


class DeviceReport(msgspec.Struct, frozen=True, kw_only=True):
    """All rows of one run. ``devices``: a description of each role's device."""

    pair: str
    devices: dict[Role, str]
    dtype: str
    video_tokens: int
    rounds: int
    rows: list[DeviceRow]


def measure_device(
    pair: str,
    *,
    device: str = "cpu",
    draft_device: str | None = None,
    dtype: str = "bfloat16",
    video_tokens: int = 25_088,
    tokens: Sequence[int] = tuple(range(1, 17)),
    ratios: Sequence[float] = (0.0, 0.5, 0.75, 0.9),
    window: int = 5,
    rounds: int = 10,
    backends: Sequence[str] = ("torch", "hf"),
    threads: int | None = None,
    on_row: Callable[[DeviceRow], None] = lambda row: None,
) -> DeviceReport:
    """Time a pair of `architectures.PAIRS`, one backend after the other.

    Args:
        pair: its name.
        device: the target's.
        draft_device: the draft's; None: the target's.
        dtype: of the weights.
        video_tokens: of the prompt.
        tokens: T_p is measured for passes over these numbers of tokens.
        ratios: T_q is measured with these shares of the video dropped; the draft's prefill uses the last one.
        window: tokens drafted in one call.
        rounds: a time is the median of this many measurements; of at most three for a prefill.
        backends: names of the plug-ins.
        threads: on the CPU; None: torch's default.
        on_row: called with each row as soon as it is measured.

    Raises OptionError for invalid counts and ratios, ConfigError for an unknown backend, and ModelError if a model
    cannot be made or run.
    """
    _check(pair, video_tokens=video_tokens, tokens=tokens, ratios=ratios, window=window, rounds=rounds)
    rows: list[DeviceRow] = []
    devices: dict[Role, str] = {"target": device, "draft": draft_device or device}
    capacity = max(*tokens, window) + 1
    with TemporaryDirectory(prefix="pvlm-decoders-") as folder, torch_threads(threads):
        for role, decoder in PAIRS[pair].items():
            write_architecture(Path(folder) / role, decoder, max(32_768, video_tokens + 2 * TEXT_TOKENS + capacity))
        for name in backends:
            plugin: type[Backend] = load_plugin(ENTRY_POINT_GROUP, name)
            try:
                models = {
                    role: _Model(name, plugin, role, Path(folder) / role, where, dtype)
                    for role, where in devices.items()
                }
                for row in _measure(models, video_tokens, tokens, ratios, window, rounds, capacity):
                    rows.append(row)
                    on_row(row)
            except (BackendError, RuntimeError) as error:  # for example: out of memory
                raise ModelError(f"backend '{name}' cannot be measured: {error}") from error
            models.clear()
            gc.collect()  # the next backend needs the memory
    return DeviceReport(
        pair=pair,
        devices={role: _in_words(where) for role, where in devices.items()},
        dtype=dtype,
        video_tokens=video_tokens,
        rounds=rounds,
        rows=rows,
    )


def _check(pair: str, *, ratios: Sequence[float], tokens: Sequence[int], **counts: int) -> None:
    if pair not in PAIRS:
        raise OptionError(f"unknown pair '{pair}': choose one of {', '.join(PAIRS)}")
    for what, count in {**counts, "tokens": min(tokens, default=0)}.items():
        if count < 1:
            raise OptionError(f"{what.replace('_', ' ')}: {count}; at least 1 is needed")
    if not ratios or not all(0 <= ratio < 1 for ratio in ratios):
        raise OptionError(f"ratios: {list(ratios)}; each must be at least 0 and below 1")


def _measure(
    models: dict[Role, _Model],
    video_tokens: int,
    tokens: Sequence[int],
    ratios: Sequence[float],
    window: int,
    rounds: int,
    capacity: int,
) -> Iterator[DeviceRow]:
    target, draft = models["target"], models["draft"]
    session = target.open(video_tokens + TEXT_TOKENS, capacity)
    session.prefill()
    yield from target.pass_times(session, tokens, rounds)
    session.close()
    for ratio in ratios:
        session = draft.open(round(video_tokens * (1 - ratio)) + TEXT_TOKENS, capacity)
        session.prefill()
        yield draft.drafting_time(session, ratio, window, rounds)
        session.close()
    ratio = ratios[-1]
    alone, together = [], []
    for _ in range(1 + min(3, rounds)):  # alternating; the first of each warms up
        alone.append(target.prefill(video_tokens, capacity))
        pruned = draft.open(round(video_tokens * (1 - ratio)) + TEXT_TOKENS, capacity)
        together.append(target.prefill(video_tokens, capacity, beside=partial(draft.on_own_stream, pruned.prefill)))
        pruned.close()
    yield target.prefill_row("prefill", 0.0, alone[1:])
    yield target.prefill_row("prefill beside the draft's", ratio, together[1:])


class _Model:
    def __init__(self, name: str, plugin: type[Backend], role: Role, folder: Path, device: str, dtype: str) -> None:
        self._name, self._role = name, role
        self._device = torch.device(device)
        self._backend = plugin.load(
            LoadOptions(str(folder), role=role, device=device, dtype=dtype, extra={"random_weights": True})
        )

    def open(self, rows: int, capacity: int) -> Session:
        """Open a session whose prompt has about ``rows`` tokens: one word, repeated."""
        one, many = (self._backend.open(Prompt(_WORD * count), 1).prompt_tokens for count in (1, 101))
        count = 1 + round((rows - one) * 100 / (many - one))
        return self._backend.open(Prompt(_WORD * max(1, count)), capacity)

    def row(self, what: What, tokens: int, ratio: float, rows: int, ms: float) -> DeviceRow:
        return DeviceRow(
            backend=self._name, role=self._role, what=what, tokens=tokens, ratio=ratio, rows=rows, ms=ms
        )  # fmt: skip

    def pass_times(self, session: Session, tokens: Sequence[int], rounds: int) -> Iterator[DeviceRow]:
        """Time passes of each size in turn, so that a drift of the machine affects all sizes alike."""
        times: dict[int, list[float]] = {count: [] for count in tokens}
        for _ in range(_WARM_UP + rounds):
            for count, measured in times.items():
                measured.append(self._timed_ms(partial(session.extend, [1] * count)))
                session.truncate(0)
        for count, measured in times.items():
            yield self.row("pass", count, 0.0, session.prompt_tokens, median(measured[_WARM_UP:]))

    def drafting_time(self, session: Session, ratio: float, window: int, rounds: int) -> DeviceRow:
        def write() -> None:
            vocab_limit = self._backend.info.vocab_size
            if isinstance(session, GreedyDrafting):
                for _ in session.draft([1], window, vocab_limit=vocab_limit):
                    pass
                return
            token = 1
            for _ in range(window):
                token = int(session.extend([token])[-1].argmax())

        times = []
        for _ in range(_WARM_UP + rounds):
            times.append(self._timed_ms(write) / window)
            session.truncate(0)
        return self.row("drafted token", window, ratio, session.prompt_tokens, median(times[_WARM_UP:]))

    def prefill(
        self, video_tokens: int, capacity: int, beside: Callable[[], object] | None = None
    ) -> tuple[int, float]:
        """Return rows and ms. ``beside`` starts in another thread after the early layers, like a draft's prefill."""
        session = self.open(video_tokens + TEXT_TOKENS, capacity)
        thread = Thread(target=beside)

        def on_early_layer(states: EarlyStates) -> None:
            self._finish()  # a GPU works asynchronously
            if beside is not None:
                thread.start()

        layer = default_early_layer(self._backend.info.layers)
        ms = self._timed_ms(lambda: session.prefill(early_layer=layer, on_early_layer=on_early_layer))
        if beside is not None:
            thread.join()
        session.close()
        return session.prompt_tokens, ms

    def prefill_row(self, what: What, ratio: float, measured: Sequence[tuple[int, float]]) -> DeviceRow:
        """Return the row of several results of `prefill`."""
        rows = measured[0][0]
        return self.row(what, rows, ratio, rows, median(ms for _, ms in measured))

    def on_own_stream(self, work: Callable[[], object]) -> None:
        """Run ``work`` on a CUDA stream of its own. On the default stream one thread would wait for the other."""
        if self._device.type != "cuda":
            work()
            return
        stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        with torch.cuda.stream(stream):
            work()
        stream.synchronize()

    def _timed_ms(self, work: Callable[[], object]) -> float:
        self._finish()
        started = time.perf_counter()
        work()
        self._finish()
        return (time.perf_counter() - started) * 1e3

    def _finish(self) -> None:
        """Wait until the device has finished this thread's work. The streams of other threads are not waited for."""
        if self._device.type == "cuda":
            torch.cuda.current_stream(self._device).synchronize()


def _in_words(device: str) -> str:
    found = torch.device(device)
    return f"{device} ({torch.cuda.get_device_name(found)})" if found.type == "cuda" else device
